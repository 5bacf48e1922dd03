"""Customer onboarding: `app.py` is the application, `signup.py` its sign-up handler, `demo.py` shows both at work.

The outside systems that it talks to are `providers.py`; `standins` plays them on this machine.
"""
