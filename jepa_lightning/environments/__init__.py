"""Simulated worlds in which plans are tried; plain NumPy."""

from jepa_lightning.environments.two_rooms import TwoRooms

__all__ = ["TwoRooms"]
