"""The only code that imports VISSL, in rooms that import downwards, in this order:

preload                 what loader workers are forked from
register                what every process of VISSL's runs first
checks                  what is refused, before anything starts
mends                   VISSL's faults where it has no door, one file per part of VISSL
components              one small file per component that is registered
hooks                   what a run says, records and saves
run                     a run's life: lock, checkpoints, processes, the signals that stop it
errors, wrap, settings  what everybody here may import
"""
