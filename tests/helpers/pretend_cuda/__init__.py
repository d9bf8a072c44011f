"""A pretend CUDA device: tensors hold CPU data, say they are on `cuda:0`, and obey CUDA's rules.

`device.py` has the device, `operations.py` what is known of single operations, `record.py` what is
counted, `internals.py` every private name of torch, `runs.py` small runs of recipes on it.
"""
