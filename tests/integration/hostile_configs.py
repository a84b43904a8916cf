"""Random configs that attack who loads a model: ``python tests/integration/hostile_configs.py 20000``.

Each is the pushed config of a shipped experiment with one attack in it. It has to be refused in one line,
before anything outside the list is imported and before any file is written outside the cache; an audit hook
watches.
"""

import copy
import functools
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from xlm.core.command.compose import CORE_CONFIGS, register_search_path
from xlm.core.config.errors import XLMError
from xlm.core.config.schema import validate
from xlm.core.hub.allow_list import allowed_names, check_objects
from xlm.core.hub.pushed_config import TAKEN, as_experiment, portable

EXPERIMENTS = ("star_tiny_ilm", "text_tiny_mdlm", "lm1b_arlm", "safe_flexmdm", "sudoku_tiny_mlm")
CANARY = "canary-value-of-the-environment"
VARIABLE = "XLM_CANARY_NOTE"
MODULES = ("antigravity", "this", "turtledemo.clock", "idlelib.idle", "hostile_payload")
"""Modules that are never imported; the last writes a file when it is imported."""
Config = dict[str, Any]
Place = tuple[Any, Any]
"""A mapping or list, and a key or index of it."""


@functools.cache
def composed(experiment: str) -> Config:
    """A shipped experiment with its references."""
    register_search_path()
    with initialize_config_dir(str(CORE_CONFIGS), version_base="1.3"):
        config = compose("config", [f"experiment={experiment}", "job_type=train", "job_name=x"])
    plain: Any = OmegaConf.to_container(config, resolve=False)
    return plain


def bases() -> list[Config]:
    """What is pushed with models of shipped experiments."""
    configs = map(composed, EXPERIMENTS)
    return [
        {key: value for key, value in portable(config, config).items() if key in TAKEN} for config in configs
    ]


def places(node: Any, *, leaves: bool, below: bool = True) -> Iterator[Place]:
    """Everywhere in a config: its leaves but for ``_target_``, or its mappings with a new key."""
    entries = node.items() if isinstance(node, dict) else enumerate(node)
    if not leaves and isinstance(node, dict) and not below:
        yield node, "extra"
    for key, value in list(entries):
        if isinstance(value, dict | list):
            yield from places(value, leaves=leaves, below=False)
        elif leaves and not str(key).startswith("_"):
            yield node, key


def pick(draw: random.Random, config: Config, *, leaves: bool) -> Place:
    """A place drawn at random."""
    return draw.choice(list(places(config, leaves=leaves)))


def target(draw: random.Random) -> str:
    """The name of something that is not allowed."""
    allowed = draw.choice(sorted(allowed_names()))
    module = allowed.rpartition(".")[0]
    return draw.choice(
        [
            f"{draw.choice(MODULES)}.run", "os.system", "builtins.eval", "builtins.exec",
            "subprocess.Popen",
            "torch.load", "pickle.loads", "hydra.utils.instantiate", "importlib.import_module",
            "runpy.run_path",
            "xlm.core.saving.checkpoints.write_text_atomically", "pathlib.Path.write_text",
            f"{module}.os.system",
            f"{allowed}.__init__", f"{allowed}.__init__.__globals__", f" {allowed}", f"{allowed} ",
            f"{allowed}\\n",
            allowed.swapcase(), f"{allowed}.", f".{allowed}", module, allowed.replace("a",
            "\u0430") + "\u200b", "",
        ]
    )  # fmt: skip


def call(draw: random.Random, folder: Path) -> Config:
    """A node that would write a file or run something."""
    return draw.choice(
        [
            {"_target_": target(draw)},
            {"_target_": "pathlib.Path.touch", "_args_": [{"_target_": "pathlib.Path",
            "_args_": [f"{folder}/x"]}]},
            {"_target_": "xlm.core.saving.checkpoints.write_text_atomically", "path": f"{folder}/x",
             "text": "hi"},
        ]
    )  # fmt: skip


def resolver(draw: random.Random, folder: Path) -> str:
    """A text that calls a resolver, by itself."""
    inner = yaml.safe_dump(call(draw, folder), default_flow_style=True, width=10**6).strip()
    return draw.choice(
        [
            f"${{oc.env:{VARIABLE}}}", f"${{oc.env:{VARIABLE},x}}", f"${{oc.create:{inner}}}",
            "${oc.decode:'1'}",
            "${hydra:runtime.cwd}", "${oc.dict.keys:model}", "${oc.dict.values:model}",
            "${oc.deprecated:seed}",
            f"${{oc.select:${{oc.env:{VARIABLE}}}}}", f"${{model.${{oc.env:{VARIABLE}}}}}",
            f"a${{oc.env:{VARIABLE}}}b",
            f"\\\\${{oc.env:{VARIABLE}}}", f"$${{oc.env:{VARIABLE}}}", f"${{ oc.env:{VARIABLE} }}", "${",
            "${}", "${.a}",
            f"${{oc.env:{VARIABLE}", "${seed}${seed}", "${seed} ", "${vocab.size}\n", "${..seed}",
            "${model[d_model]}",
        ]
    )  # fmt: skip


def put(place: Place, value: object) -> None:
    """Put a value there."""
    place[0][place[1]] = value


def attack_target(draw: random.Random, config: Config, folder: Path) -> None:
    """A class or function that is not declared."""
    put(pick(draw, config, leaves=draw.random() < 0.5), {"_target_": target(draw)})


def attack_resolver(draw: random.Random, config: Config, folder: Path) -> None:
    """A resolver in one text, in a list, or below further keys."""
    text = resolver(draw, folder)
    put(pick(draw, config, leaves=draw.random() < 0.7), draw.choice([text, [text], {"a": {"b": text}}]))


def attack_in_parts(draw: random.Random, config: Config, folder: Path) -> None:
    """A resolver that is put together from texts, each harmless by itself."""
    text = resolver(draw, folder)
    cut = draw.randrange(1, len(text)) if draw.random() < 0.5 else 1
    config["monitor"], config["monitor_mode"] = text[:cut], text[cut:]
    whole = draw.choice(
        [f"${{monitor}}{text[cut:]}", "${monitor}${monitor_mode}", f"${{monitor}}{{oc.env:{VARIABLE}}}"]
    )
    put(pick(draw, config, leaves=True), whole)


def attack_special(draw: random.Random, config: Config, folder: Path) -> None:
    """What only Hydra reads."""
    node, _ = pick(draw, config, leaves=False)
    key = draw.choice(["_args_", "_recursive_", "_convert_", "_partial_"])
    values = {
        "_args_": [["/any/folder"], [], [call(draw, folder)]],
        "_recursive_": [False, True],
        "_convert_": ["all"],
    }
    node[key] = draw.choice(values.get(key, ["true", 1, None]))


def attack_place(draw: random.Random, config: Config, folder: Path) -> None:
    """A file or folder elsewhere, or on the net."""
    place = draw.choice(
        [f"{folder}/x", "/etc/passwd", "~/.ssh/id_rsa", "../../x", "a/../../x", "..", "..\\x", "C:\\x",
        "file:///etc/passwd",
         "https://evil.example/x", "s3://x/y", "simplecache::https://evil.example", "\\\\host\\x", "link/x"]
    )  # fmt: skip
    node, key = pick(draw, config, leaves=draw.random() < 0.3)
    node = config["model"] if node is config else node  # new keys beside it are not taken over
    others: list[Any] = ["path", "data_files", "folder", "vocabulary", "saved"]
    chosen = draw.choice([key] if isinstance(node, list) else [key, *others])
    put((node, "saved" if chosen == "monitor" else chosen), place)  # the name of a metric is no place


def attack_reader(draw: random.Random, config: Config, folder: Path) -> None:
    """A data set whose reader runs code or reads what it should not."""
    source = {"_target_": "datasets.load_dataset", "_partial_": True, "path": "json"}
    more = [{"path": "pandas"}, {"path": "webdataset"}, {"path": "./x"}, {"data_dir": "/etc"},
    {"trust_remote_code": True},
            {"storage_options": {}}, {"builder": "x"}, {"path": None}]  # fmt: skip
    config["task"]["source"] = {**source, **draw.choice(more)}


def attack_name(draw: random.Random, config: Config, folder: Path) -> None:
    """A name that is none."""
    name = draw.choice(
        ["", "..", ".", "../../../x", f"{folder}/x", "a/b", "a b", "a\\b", "-", "a" * 300, ".x", "\u0430"]
    )
    config["task"]["name"] = name


def attack_reference(draw: random.Random, config: Config, folder: Path) -> None:
    """References in a circle, to nothing, or to more than fits."""
    (name, first), (_, second) = (("a", "${model.b}"), ("b", "${model.a}"))
    grown = {f"n{number}": [f"${{model.n{number + 1}}}"] * 20 for number in range(9)} | {"n9": 1}
    config["model"] |= draw.choice(
        [{name: first, "b": second}, {"a": "${model}"}, grown, {"a": "${output_dir}"},
        {"a": "${model.nothing}"},
         {"a": "${hydra.run.dir}"}, {"_target_": "${loss._target_}"}]
    )  # fmt: skip


def attack_key(draw: random.Random, config: Config, folder: Path) -> None:
    """A key that is no text."""
    node, _ = pick(draw, config, leaves=False)
    node[draw.choice([1, True, None, 1.5])] = 1


ATTACKS: tuple[Callable[[random.Random, Config, Path], None], ...] = (
    attack_target, attack_resolver, attack_in_parts, attack_special, attack_place, attack_reader, attack_name,
    attack_reference, attack_key,
)  # fmt: skip


def broken_text(draw: random.Random, text: str) -> bytes:
    """A config whose bytes are the attack."""
    deep, digits = draw.randrange(40, 5000), draw.randrange(5000, 50_000)
    more = draw.choice(
        ["[" * deep + "]" * deep, "[" * deep, '{"a": ' * deep, "9" * digits,
         "0x" + "f" * digits, "1" + ":59" * digits,
         '"\\ud800"', '"\\0"', "!!python/object/apply:os.system ['true']", "!!binary aGk=", "!!set {a}",
         "!!int ''",
         "&a [1]\ny: *a", "2020-01-01", "[" + "1," * 30_000 + "1]", '"' + "x" * 300_000 + '"', "{", '"',
         "@"]
    )  # fmt: skip
    whole = f"{text}\nseed: {more}\n"
    changes: list[Callable[[], bytes]] = [
        lambda: whole.encode("utf-8"), lambda: whole.encode("utf-8"), lambda: whole.encode("utf-8"),
        lambda: text.encode("utf-16"), lambda: text.encode("utf-8") + bytes([draw.randrange(0x80, 0x100)]),
        lambda: b"- 1\n", lambda: b"",
    ]  # fmt: skip
    return draw.choice(changes)()


def hostile(draw: random.Random, base: list[Config], folder: Path) -> tuple[str, bytes]:
    """A hostile config as it would be downloaded, and the name of the attack."""
    config = copy.deepcopy(draw.choice(base))
    if draw.random() < 0.15:
        return "broken_text", broken_text(draw, yaml.safe_dump(config, sort_keys=False))
    attack = draw.choice(ATTACKS)
    attack(draw, config, folder)
    return attack.__name__, yaml.safe_dump(config, sort_keys=False).encode()


class Watch:
    """An audit hook: what was imported, opened for writing, started or connected to while it was on."""

    def __init__(self, allowed: Path) -> None:
        self.allowed = allowed
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._see)

    def _see(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "import" and str(arguments[0]).startswith(MODULES):
            self.seen.append(f"import {arguments[0]}")
        elif event.split(".")[0] in ("subprocess", "socket", "pty", "ctypes") or event in (
            "os.system",
            "os.exec",
        ):
            self.seen.append(f"{event} {arguments[:1]}")
        elif event == "open" and not self._writes(arguments[1], arguments[2]):
            return
        elif event in (
            "open",
            "os.mkdir",
            "os.remove",
            "os.rename",
            "os.symlink",
            "os.link",
            "os.chmod",
            "shutil.rmtree",
        ):
            self._check_path(event, arguments)

    @staticmethod
    def _writes(mode: object, flags: object) -> bool:
        if isinstance(mode, str):
            return bool(set(mode) & set("wax+"))
        return isinstance(flags, int) and bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

    def _check_path(self, event: str, arguments: tuple[Any, ...]) -> None:
        path, *rest = arguments
        if event == "os.remove" and rest[0] != -1:  # by rmtree, below a folder that was looked at
            return
        if not isinstance(path, str | os.PathLike) or "__pycache__" in str(path):
            return
        if not Path(os.path.realpath(os.fspath(path))).is_relative_to(self.allowed):
            self.seen.append(f"{event} {path}")


def refusal(content: bytes, folder: Path) -> str:
    """The error message for a config beside a model in ``folder``.

    Raises:
        AssertionError: When it is taken.
    """
    (folder / "xlm_config.yaml").write_bytes(content)
    try:
        with as_experiment(["job_type=generate", "job_name=x", f"ckpt_path={folder}"]) as (_, extra):
            assert extra is not None
            written = yaml.safe_load((extra / "experiment" / "pushed_with_the_model.yaml").read_text("utf-8"))
            whole = OmegaConf.create({**composed("star_tiny_ilm"), **written})
            plain: Any = OmegaConf.to_container(whole, resolve=True)
            validate(plain)  # names are looked at here
    except XLMError as error:
        return str(error)
    raise AssertionError("it was taken")


@contextmanager
def scene(root: Path) -> Generator[tuple[Path, Path]]:
    """A working directory with a link out of it, a secret in the environment, a module that writes a file.

    Yields:
        The folder of the model, and one that nothing may be written to.
    """
    model, work, outside = root / "cache" / "model", root / "work", root / "outside"
    for folder in (model, work, outside):
        folder.mkdir(parents=True)
    (work / "link").symlink_to(outside)
    (work / "hostile_payload.py").write_text(
        f"import pathlib\npathlib.Path({str(outside / 'x')!r}).touch()\n"
    )
    before, temporary = Path.cwd(), tempfile.tempdir
    os.environ[VARIABLE] = CANARY
    sys.path.append(str(work))
    os.chdir(work)
    tempfile.tempdir = str(root / "cache")
    try:
        yield model, outside
    finally:
        os.chdir(before)
        sys.path.remove(str(work))
        del os.environ[VARIABLE]
        tempfile.tempdir = temporary


def attack(number: int, *, seed: int, root: Path) -> Counter[str]:
    """Make and try so many hostile configs; returns how many there were of each attack.

    Raises:
        AssertionError: With the first that was taken, ran something or was not refused in one line.
    """
    check_objects({"all": [{"_target_": name} for name in allowed_names()]}, "everything")  # imports them
    base, tried = bases(), Counter[str]()
    watch = Watch(root / "cache")
    with scene(root) as (model, outside):
        for config in base:  # what the attacks are put into is harmless
            (model / "xlm_config.yaml").write_text(yaml.safe_dump(config))
            with as_experiment(["job_name=x", f"ckpt_path={model}"]) as (_, extra):
                assert extra is not None
        for index in range(number):
            draw = random.Random(seed * 1_000_003 + index)
            name, content = hostile(draw, base, outside)
            watch.on = True
            try:
                message = refusal(content, model)
            except Exception as error:
                error.add_note(f"{name}, seed {seed}, number {index}:\n{content[-3000:]!r}")
                raise
            finally:
                watch.on = False
            assert not watch.seen, (name, index, watch.seen)
            assert not list(outside.iterdir()), (name, index)
            lines = [line for line in message.splitlines() if line != "The config is not valid:"]
            assert len(lines) == 1, (name, index, message)
            assert CANARY not in message, (name, index, message)
            tried[name] += 1
    return tried


def main() -> None:
    """So many hostile configs, from the command line."""
    number, seed = int(sys.argv[1]), int((*sys.argv, "0")[2])
    with tempfile.TemporaryDirectory() as folder:
        tried = attack(number, seed=seed, root=Path(folder).resolve())
    print(f"{tried.total():,} hostile configs were refused: {dict(tried)}")


if __name__ == "__main__":
    main()
