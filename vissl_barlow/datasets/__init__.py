"""Commands that turn a published data set into the file lists VISSL reads.

For VOC07 and iNaturalist 2018 VISSL has its own: `extra_scripts.datasets.create_voc_data_files` and
`create_inaturalist2018_data_files`.
"""
