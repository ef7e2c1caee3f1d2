"""The only code that imports VISSL: one small file per component it registers."""
