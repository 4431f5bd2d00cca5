"""Planning with a world model: sampling planners, costs, the closed loop. Plain PyTorch."""

from jepa_lightning.planning.costs import Cost
from jepa_lightning.planning.latent import PredictorWorld, RollOut
from jepa_lightning.planning.loop import Outcome, Receding, run_episodes
from jepa_lightning.planning.planners import CEM, MPPI, Plan, Planner, RandomShooting, robot_cem
from jepa_lightning.planning.space import ActionSpace, RobotSpace
from jepa_lightning.planning.world import WorldModel

__all__ = [
    "CEM",
    "MPPI",
    "ActionSpace",
    "Cost",
    "Outcome",
    "Plan",
    "Planner",
    "PredictorWorld",
    "RandomShooting",
    "Receding",
    "RobotSpace",
    "RollOut",
    "WorldModel",
    "robot_cem",
    "run_episodes",
]
