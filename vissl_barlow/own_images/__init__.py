"""A folder of somebody's own images: what is in it, and how to pretrain on it (`choices.py`)."""

from vissl_barlow.own_images.folder import FolderRefused, OwnFolder, read_folder

__all__ = ["FolderRefused", "OwnFolder", "read_folder"]
