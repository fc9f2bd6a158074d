"""How a policy is told its task: the vector that stands for ``batch["task"]``.

It reaches ACT and Diffusion as (a further part of) the environment's state, which both read already.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lerobot_policy_pixio.options import PixioOptions
from pixio_robot.errors import CheckpointError, DataError, SettingError, UnknownNameError
from pixio_robot.hashes import weights_sha256


class IndexedTasks(nn.Module):
    """A learned vector per task: names [b] -> [b dim].

    Args:
        config: The settings, with ``tasks``.

    Raises:
        SettingError: If there are none.
    """

    def __init__(self, config: PixioOptions) -> None:
        super().__init__()
        if not config.tasks:
            raise SettingError(
                "task_conditioning='index' needs to know the tasks: they come with a data set's metadata, or set tasks."
            )
        self._rows = {task: row for row, task in enumerate(config.tasks)}
        self.embedding = nn.Embedding(len(config.tasks), config.task_dim)

    def forward(self, tasks: Sequence[str]) -> Tensor:
        """Look the tasks up.

        Raises:
            UnknownNameError: If one was not there in training.
        """
        unknown = [task for task in tasks if task not in self._rows]
        if unknown:
            raise UnknownNameError("task of this policy", unknown[0], self._rows)
        rows = [self._rows[task] for task in tasks]
        return self.embedding(torch.tensor(rows, device=self.embedding.weight.device))


class SpokenTasks(nn.Module):
    """What a frozen language model makes of a task's words, projected: sentences [b] -> [b dim].

    Checkpoints hold the model's answers for the training's tasks, so that only other sentences need the model again. It
    stays on the CPU and reads each sentence once.

    Args:
        config: The settings, in which the model's hash and width are written down.

    Raises:
        CheckpointError: If the model cannot be read.
    """

    answers: Tensor

    def __init__(self, config: PixioOptions) -> None:
        super().__init__()
        self._config = config
        self._model: LanguageModel | None = None
        self._heard: dict[str, Tensor] = {}
        if config.language_hash is None or config.language_width is None:
            self._model = LanguageModel(str(config.language_model))
            config.language_hash, config.language_width = self._model.sha256, self._model.width
        width = config.language_width
        self.register_buffer("answers", torch.full((len(config.tasks), width), torch.nan))  # NaN: not asked yet
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, config.task_dim)
        if self._model is not None and config.tasks:
            self.answers.copy_(self._model.read(config.tasks))

    def forward(self, tasks: Sequence[str]) -> Tensor:
        """Say the tasks' vectors; any words will do.

        Raises:
            CheckpointError: If new words need the language model, and it is missing or another.
        """
        answers = torch.stack([self._answer(task) for task in tasks])
        return self.project(self.norm(answers.to(self.project.weight)))

    def _answer(self, task: str) -> Tensor:
        if task not in self._heard:
            stored = self.answers[self._config.tasks.index(task)] if task in self._config.tasks else None
            if stored is None or stored.isnan().any():
                stored = self._open_model().read([task])[0]
            self._heard[task] = stored.detach().cpu()
        return self._heard[task]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._heard.clear()

    def _open_model(self) -> "LanguageModel":
        if self._model is None:
            model, config = LanguageModel(str(self._config.language_model)), self._config
            if model.sha256 != config.language_hash:
                raise CheckpointError(
                    f"This policy was trained with the language model {config.language_model!r} of sha256 "
                    f"{str(config.language_hash)[:12]}; the one there has {model.sha256[:12]}. Point `language_model` "
                    "at the weights of its training."
                )
            self._model = model
        return self._model


class LanguageModel:
    """A frozen text model of transformers: sentences to the mean of its last hidden states.

    Args:
        name: A folder or hub name with model and tokenizer.

    Attributes:
        width: Width of its output.
        sha256: Hash of its weights.

    Raises:
        CheckpointError: If transformers is not installed, or cannot read it.
    """

    def __init__(self, name: str) -> None:
        try:
            from transformers import AutoModel, AutoTokenizer

            self._tokenizer: Any = AutoTokenizer.from_pretrained(name)
            model: Any = AutoModel.from_pretrained(name)
        except ImportError as error:
            raise CheckpointError(
                f"A language model needs transformers: pip install transformers ({error})."
            ) from error
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"There is no text model of transformers with its tokenizer at {name!r}: {str(error).splitlines()[0]}"
            ) from error
        model = getattr(model, "text_model", model)  # of CLIP and its kin, the half that reads
        model = model.get_encoder() if model.config.is_encoder_decoder else model
        self._model: Any = model.float().eval().requires_grad_(False)
        self.width: int = model.config.hidden_size
        self.sha256 = weights_sha256(sorted(model.state_dict().items()))

    @torch.no_grad()
    def read(self, sentences: Sequence[str]) -> Tensor:
        """Sentences [k] -> float32 [k width], each read by itself, so that its neighbours make no difference."""
        return torch.cat([self._read(sentence) for sentence in sentences])

    def _read(self, sentence: str) -> Tensor:
        words = self._tokenizer(sentence, return_tensors="pt", truncation=True)
        return self._model(**words).last_hidden_state.mean(dim=1)


def make_task_embedding(config: PixioOptions, dataset_meta: Any = None) -> IndexedTasks | SpokenTasks | None:
    """Make what ``config.task_conditioning`` asks for.

    Args:
        config: The settings; ``tasks`` become those of the data set if it names none.
        dataset_meta: LeRobot's metadata of the data set, if there is one.
    """
    if config.task_conditioning == "none":
        return None
    if not config.tasks and dataset_meta is not None:
        config.tasks = [str(task) for task in dataset_meta.tasks.sort_values("task_index").index]
    return IndexedTasks(config) if config.task_conditioning == "index" else SpokenTasks(config)


def read_tasks(batch: dict[str, Any], size: int) -> list[str]:
    """The task of each of ``size`` samples.

    Raises:
        DataError: If the batch does not say.
    """
    tasks = batch.get("task")
    tasks = [tasks] * size if isinstance(tasks, str) else [str(task) for task in tasks or ()]
    if len(tasks) != size or not all(tasks):
        raise DataError(
            f"The policy is told its task by batch['task'], {size} sentences here; the batch has {tasks or 'none'}. "
            "Environments tell it through `task_description` or `task`, data sets through their tasks."
        )
    return tasks
