"""The only code that imports VISSL, in rooms that import downwards:

register                         what every process of VISSL's runs first
checks, hooks, mends             what is refused; what a run says and records; VISSL's faults
components                       one small file per component that is registered
run                              a run's life: its lock, its processes, the signals that stop it
errors, wrap                     what everybody here may import
"""
