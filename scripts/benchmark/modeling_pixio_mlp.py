"""``pixio_mlp``: the policy of CortexBench's MuJoCo suites on any encoder, as a LeRobot policy."""

from itertools import pairwise
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION, OBS_ENV_STATE, OBS_STATE
from torch import Tensor, nn
from torch.nn import functional as F

from benchmark.configuration_pixio_mlp import PixioMLPConfig
from lerobot_policy_pixio.modeling_pixio import Batch, PixioPolicy, check_finite
from pixio_robot import Encoder
from pixio_robot.errors import SettingError


class PixioMLPPolicy(PixioPolicy, PreTrainedPolicy):
    """Batch norm and a few linear layers on the features of the last frames, trained by behaviour cloning.

    Features of t frames e become e[1] - e[0], ..., e[t-1] - e[t-2], e[t-1]: motion first, then the present. States are
    the present's alone.

    Args:
        config: The settings, with input and output features.
        encoder: The encoder that ``config.encoder`` names, if it is in memory already; loaded when absent.
        dataset_meta: LeRobot's metadata of the data set.
        **kwargs: What else LeRobot passes to every policy.
    """

    config_class = PixioMLPConfig  # type: ignore[assignment]
    name = "pixio_mlp"  # type: ignore[assignment]
    config: PixioMLPConfig  # type: ignore[assignment]

    def __init__(
        self, config: PixioMLPConfig, *, encoder: Encoder | None = None, dataset_meta: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(config, **kwargs)
        config.validate_features()
        state, action = config.robot_state_feature, config.action_feature
        assert state is not None, "validate_features has seen it"
        assert action is not None, "and this one"
        # The adapter that every policy's eyes have is not used: features are read as they are.
        self._equip(dim=8, output="vector", encoder=encoder, dataset_meta=dataset_meta)
        width = state.shape[0] + (config.env_state_feature.shape[0] if config.env_state_feature else 0)
        if self.eyes is not None:
            self.eyes.adapter = nn.Identity()  # type: ignore[assignment]
            width += len(config.image_features) * config.n_obs_steps * self.eyes.encoder.spec.width
        widths = [width, *config.hidden_dims]
        layers = [layer for before, after in pairwise(widths) for layer in (nn.Linear(before, after), nn.ReLU())]
        last = nn.Linear(widths[-1], action.shape[0])
        with torch.no_grad():
            last.weight.mul_(0.01)  # begins by doing next to nothing
            last.bias.mul_(0.01)
        self.network = nn.Sequential(nn.BatchNorm1d(width), *layers, last)

    def reset(self) -> None:
        """There is nothing to forget."""

    def forward(self, batch: Batch) -> tuple[Tensor, None]:
        """Training loss: mean squared error of the actions.

        Raises:
            DataError: If the batch lacks a camera or its task, or is of another robot.
            SettingError: If the loss is not finite.
        """
        loss = F.mse_loss(self._act(batch), batch[ACTION][:, 0])
        check_finite(loss, "loss", self.config)
        return loss, None

    @torch.no_grad()
    def predict_action_chunk(self, batch: Batch) -> Tensor:  # type: ignore[override]
        """The actions [b 1 a] after observations [b t ...]."""
        return self._act(batch)[:, None]

    def select_action(self, _batch: Batch) -> Tensor:  # type: ignore[override]
        """Refuse: the policy remembers no frames.

        Raises:
            SettingError: Always; says what to use.
        """
        raise SettingError("pixio_mlp remembers no frames: let benchmark.acting.HistoryActor act, which is shown them.")

    def _act(self, batch: Batch) -> Tensor:
        """Actions [b a] from observations [b t ...], cameras as images or as ``Tokens``."""
        self._check_widths(batch)
        views = self._views(batch)
        batch = self._tell_task(batch)
        parts = [batch[key][:, -1] for key in (OBS_STATE, OBS_ENV_STATE) if key == OBS_STATE or self._reads_state]
        if self.eyes is not None:
            parts += [_motion(tokens.summary) for tokens in self.eyes.encode(views)]
        return self.network(torch.cat([part.float() for part in parts], dim=-1))

    @property
    def _reads_state(self) -> bool:
        return self.config.env_state_feature is not None


def _motion(features: Tensor) -> Tensor:
    """Features [b t d] -> differences of neighbours, and the last [b t*d]."""
    return torch.cat([features.diff(dim=1), features[:, -1:]], dim=1).flatten(1)
