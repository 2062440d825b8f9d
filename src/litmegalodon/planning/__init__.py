"""What a run needs before it is started: memory, traffic, arithmetic and time of a process.

`devices`, `plan` and `sizes` import nothing heavy, to refuse a run before torch is loaded.
"""
