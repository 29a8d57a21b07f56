"""Core ML packages: creation, inspection, and evaluation on machines without Core ML.

- ``packages``: torch modules to packages, and compression of their weights;
- ``program``: runs packages for the gate, with Core ML on macOS and with the evaluator elsewhere;
- ``mil_evaluator``, ``mil_ops``: evaluate an ML Program op by op in torch;
- ``op_report``: counts a program's operations and flags those that may leave the Neural Engine;
- ``plain``: an unoptimised conversion, for comparison in reports.
"""
