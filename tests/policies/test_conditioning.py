"""One policy for several tasks: by index, and by what a language model makes of the words."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.factory import get_policy_class
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from lerobot_policy_pixio.conditioning import LanguageModel
from lerobot_policy_pixio.frames import open_dataset
from pixio_robot.errors import CheckpointError, DataError, SettingError, UnknownNameError

TASKS = ["open the drawer", "push the button"]
WORDS = ["[PAD]", "[UNK]", "open", "close", "push", "pull", "the", "a", "drawer", "button", "door"]

Make = Callable[..., Any]


def write_language_model(folder: Path, *, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(WORDS), **sizes)).save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: row for row, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    return folder


@pytest.fixture
def language_model(tmp_path: Path) -> Path:
    return write_language_model(tmp_path / "language")


@pytest.fixture(params=["index", "language"])
def conditioning(request: pytest.FixtureRequest, language_model: Path) -> dict[str, Any]:
    return {"task_conditioning": request.param, "tasks": TASKS, "language_model": str(language_model)}


def doing(batch: dict[str, Any], *tasks: str) -> dict[str, Any]:
    return batch | {"task": list(tasks)}


def test_each_sample_follows_its_own_task(
    kind: str, conditioning: dict[str, Any], make: Make, make_batch: Make, act: Make
) -> None:
    policy = make(kind, **conditioning)
    batch = make_batch(policy)
    both = {task: act(policy, doing(batch, task, task)) for task in TASKS}
    mixed = act(policy, doing(batch, TASKS[1], TASKS[0]))
    assert not torch.allclose(both[TASKS[0]], both[TASKS[1]])
    torch.testing.assert_close(mixed, torch.stack([both[TASKS[1]][0], both[TASKS[0]][1]]))
    torch.testing.assert_close(act(policy, batch | {"task": TASKS[0]}), both[TASKS[0]])  # one for all


def test_the_tasks_vector_is_trained(kind: str, conditioning: dict[str, Any], make: Make, make_batch: Make) -> None:
    policy = make(kind, **conditioning).train()
    policy(doing(make_batch(policy), *TASKS))[0].backward()
    parameters = dict(policy.task_embedding.named_parameters())
    assert parameters.keys() == (
        {"embedding.weight"}
        if conditioning["task_conditioning"] == "index"
        else {"norm.weight", "norm.bias", "project.weight", "project.bias"}
    )
    for parameter in parameters.values():
        assert parameter.grad.abs().sum() > 0
    optimized = {id(parameter) for group in policy.get_optim_params() for parameter in group["params"]}
    assert optimized.issuperset(id(parameter) for parameter in parameters.values())


def test_an_environment_state_stays_beside_the_task(kind: str, make: Make, make_batch: Make, act: Make) -> None:
    plain = make(kind)
    features = plain.config.input_features | {
        "observation.environment_state": PolicyFeature(type=FeatureType.ENV, shape=(5,))
    }
    policy = make(kind, task_conditioning="index", tasks=TASKS, task_dim=7, input_features=features)
    assert policy.config.env_state_feature.shape == (12,)
    batch = doing(make_batch(policy), *TASKS)
    lead = batch["observation.state"].shape[:-1]
    states = [batch | {"observation.environment_state": torch.full((*lead, 5), value)} for value in (0.0, 1.0)]
    assert torch.isfinite(policy.train()(states[0])[0])
    assert not torch.allclose(act(policy, states[0]), act(policy, states[1]))
    other = act(policy, states[0] | {"task": TASKS[::-1]})
    assert not torch.allclose(act(policy, states[0]), other)


def test_a_blind_policy_can_be_told_its_task(kind: str, make: Make, make_batch: Make, act: Make) -> None:
    policy = make(kind, blind=True, task_conditioning="index", tasks=TASKS)
    batch = make_batch(policy)
    assert torch.isfinite(policy.train()(doing(batch, *TASKS))[0])
    plans = [act(policy, doing(batch, task, task)) for task in TASKS]
    assert not torch.allclose(*plans)


def test_tasks_are_those_of_the_data_set(kind: str, make: Make, dataset_root: Path) -> None:
    meta = open_dataset(dataset_root).meta
    policy = make(kind, task_conditioning="index", made_of={"dataset_meta": meta})
    assert policy.config.tasks == ["walk"]
    named = make(kind, task_conditioning="index", tasks=TASKS, made_of={"dataset_meta": meta})
    assert named.config.tasks == TASKS


def test_a_task_that_is_unknown_or_untold_is_refused(kind: str, make: Make, make_batch: Make, act: Make) -> None:
    policy = make(kind, task_conditioning="index", tasks=TASKS)
    batch = make_batch(policy)
    with pytest.raises(UnknownNameError, match=r"'push the buton'. Did you mean 'push the button'"):
        policy(doing(batch, TASKS[0], "push the buton"))
    with pytest.raises(DataError, match=r"2 sentences here; the batch has none"):
        act(policy, {key: value for key, value in batch.items() if key != "task"})
    with pytest.raises(DataError, match=r"the batch has \['', ''\]"):
        act(policy, doing(batch, "", ""))  # what LeRobot says for an environment that says nothing
    with pytest.raises(DataError, match=r"the batch has \['open the drawer'\]"):
        act(policy, doing(batch, TASKS[0]))
    with pytest.raises(SettingError, match=r"needs to know the tasks"):
        make(kind, task_conditioning="index")


def test_new_words_are_understood_and_each_is_read_once(
    kind: str, language_model: Path, make: Make, make_batch: Make, act: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    understand = LanguageModel._read
    monkeypatch.setattr(LanguageModel, "_read", lambda self, words: read.append(words) or understand(self, words))
    policy = make(kind, task_conditioning="language", tasks=TASKS, language_model=str(language_model))
    batch = make_batch(policy)
    plans = [act(policy, doing(batch, *tasks)) for tasks in (TASKS, ["close the door"] * 2, ["pull a drawer"] * 2)]
    act(policy, doing(batch, "pull a drawer", "close the door"))
    assert sorted(read) == sorted([*TASKS, "close the door", "pull a drawer"])
    assert not torch.allclose(plans[1], plans[2])
    assert not any("_model" in name for name in policy.state_dict())


def test_checkpoints_remember_the_trainings_tasks_without_the_language_model(
    kind: str, language_model: Path, make: Make, make_batch: Make, act: Make, tmp_path: Path
) -> None:
    policy = make(kind, task_conditioning="language", tasks=TASKS, language_model=str(language_model))
    batch = doing(make_batch(policy), *TASKS)
    policy.save_pretrained(tmp_path / "policy")
    shutil.rmtree(language_model)
    reloaded = get_policy_class(kind).from_pretrained(tmp_path / "policy")
    assert torch.equal(act(reloaded, batch), act(policy, batch))
    with pytest.raises(CheckpointError, match=r"no text model of transformers with its tokenizer"):
        act(reloaded, doing(batch, "close the door", TASKS[0]))
    write_language_model(language_model, seed=1)
    with pytest.raises(CheckpointError, match=r"language model .* of sha256 .* the one there has"):
        act(reloaded, doing(batch, "close the door", TASKS[0]))


def test_a_checkpoint_without_ears_does_not_make_a_policy_that_hears(kind: str, make: Make, tmp_path: Path) -> None:
    make(kind).save_pretrained(tmp_path)
    hearing = make(kind, task_conditioning="index", tasks=TASKS)
    with pytest.raises((CheckpointError, RuntimeError), match=r"task_conditioning|size mismatch"):
        get_policy_class(kind).from_pretrained(tmp_path, config=hearing.config)
