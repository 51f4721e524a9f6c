"""What of this machine Tandem can use, what stands in the way, and what to do about it.

A check is a function from a `Machine` (and what a probe of the running one found) to findings. It reads files under a
root and says what they say; what cannot be read is said to be unknown.
"""
