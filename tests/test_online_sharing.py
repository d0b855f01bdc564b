"""An online run whose samplers sleep while a step is trained, on real engines.

On a CPU nothing becomes free, but every call is the same. One replica of two is killed while the
others sleep.

Run: pytest tests/test_online_sharing.py
"""
