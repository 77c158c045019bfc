"""The bundled models: what they are, and how they were trained.

    python -m wiremap.circuits.zoo train NAME [--out DIR]

trains one on synthetic sentences of the built-in tasks and writes it in Hugging Face format, with
``training.json`` (the final numbers of its training) beside the weights. They are small enough to
run anywhere and good enough at their tasks to have a circuit worth finding.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import torch
from jaxtyping import Int64
from torch import Tensor

from ..edges.errors import InputError
from ..edges.model.loading import bundled_models, bundled_path
from ..edges.model.tokens import Tokenizer
from ..edges.question.prompts import PromptPairs
from .tasks.builtin import find_task
from .tasks.task import Record, Task, spelled


@dataclass(frozen=True)
class Recipe:
    """How one bundled model is made.

    Attributes:
        weights: how often each task's sentences come.
        corruptions: how the corrupted sentences of a task differ, where not by its first corruption.
        write_penalty: added to the loss, times the mean norm of what each head and MLP writes, in
            embedding norms and summed over them, so that those it does not need fall silent. It
            sets in when 40 % of the steps are done, and reaches its value at 60 %.
    """

    name: str
    weights: Mapping[str, float]
    config: Mapping[str, Any]
    steps: int
    batch_size: int = 256
    learning_rate: float = 2e-3
    weight_decay: float = 0.1
    write_penalty: float = 0.0
    seed: int = 0
    corruptions: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def tasks(self) -> list[Task]:
        """The tasks it learns."""
        return [find_task(name) for name in self.weights]


RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="ioi-mini",
            weights={"ioi": 1.0},
            config={
                "model_type": "gpt2",
                "n_layer": 4,
                "n_head": 4,
                "n_embd": 64,
                "n_inner": 128,
                "n_positions": 64,
                "resid_pdrop": 0.0,
                "embd_pdrop": 0.0,
                "attn_pdrop": 0.0,
            },
            steps=4000,
            learning_rate=3e-3,
            weight_decay=0.3,
            write_penalty=0.01,
            corruptions={"ioi": "abc"},
        ),
        Recipe(
            name="tasks-mini",
            weights={
                "greater-than": 1.0,
                "agreement": 0.5,
                "induction": 2.0,
                "gendered-pronoun": 0.5,
            },
            config={
                "model_type": "llama",
                "num_hidden_layers": 4,
                "num_attention_heads": 8,
                "num_key_value_heads": 4,
                "hidden_size": 128,
                "intermediate_size": 256,
                "max_position_embeddings": 64,
                "tie_word_embeddings": True,
            },
            steps=6000,
        ),
        Recipe(
            name="induction-mini",
            weights={"induction": 1.0},
            config={
                "model_type": "gpt2",
                "n_layer": 2,
                "n_head": 4,
                "n_embd": 64,
                "n_positions": 64,
                "resid_pdrop": 0.0,
                "embd_pdrop": 0.0,
                "attn_pdrop": 0.0,
            },
            steps=4000,
        ),
    )
}

_SPECIAL = ("<unk>", "<s>", "</s>")
_END = " ."


def training_records() -> list[dict[str, Any]]:
    """Of each bundled model, the final numbers of its training, and its architecture."""
    records: list[dict[str, Any]] = []
    for name in bundled_models():
        config = json.loads((bundled_path(name) / "config.json").read_text())
        record = json.loads((bundled_path(name) / "training.json").read_text())
        records.append({**record, "architecture": config["architectures"][0]})
    return records


def bundled_tasks(model: str) -> list[str]:
    """The tasks a bundled model was trained on; none for any other model."""
    return list(RECIPES[model].weights) if model in RECIPES else []


def build_tokenizer(tasks: Sequence[Task]) -> Any:
    """A word-level tokenizer of exactly the words these tasks can say; years are two tokens."""
    import transformers
    from tokenizers import Regex, pre_tokenizers
    from tokenizers import Tokenizer as TokenizerCore
    from tokenizers.models import WordLevel

    pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Split(Regex(r"\d\d"), "isolated")]
    )
    texts = [_END]
    for task in tasks:
        # Slots set off by blanks, so that each is a part of its own and can be left out below.
        texts += [template.replace("{", " {").replace("}", "} ") for template in task.templates]
        texts += [word for words in task.words.values() for word in words]
        texts += task.answers
    words: set[str] = set()
    for text in texts:
        plain = " ".join(part for part in text.split() if not part.startswith("{"))
        plain = plain.replace("/", " ").replace("|", " ")
        words.update(word for word, _ in pre_tokenizer.pre_tokenize_str(plain))
    # Sorted: the same words have the same ids in every process.
    vocabulary = {word: index for index, word in enumerate([*_SPECIAL, *sorted(words)])}
    core = TokenizerCore(WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
    )


def held_out(prompt: str) -> bool:
    """Whether a prompt is kept from training: one in ten, by a checksum of its text."""
    # Not `hash`, which Python salts anew in every process.
    return zlib.crc32(prompt.encode()) % 10 == 0


def _load_tokenizer(recipe: Recipe) -> Any:
    """The bundled model's own, since tasks have more words than when it was made; else a new one."""
    import transformers

    if recipe.name in bundled_models():
        return transformers.AutoTokenizer.from_pretrained(bundled_path(recipe.name))
    return build_tokenizer(recipe.tasks)


def _sentences(recipe: Recipe, tokenizer: Any) -> Iterator[str]:
    """Endless training sentences. One in five is a corrupted prompt, where one knows how it goes on."""
    rng = random.Random(recipe.seed)
    tasks = [spelled(task, Tokenizer(tokenizer, bos=True)) for task in recipe.tasks]
    weights = list(recipe.weights.values())
    while True:
        (task,) = rng.choices(tasks, weights)
        corruption = recipe.corruptions.get(task.name, next(iter(task.corruptions)))
        record = task.sample(rng.choice(task.templates), task.words, rng, corruption)
        prompt, answers = record["clean"], record["answer"]
        if "corrupted_answer" in record and rng.random() < 0.2:
            prompt, answers = record["corrupted"], record["corrupted_answer"]
        if held_out(prompt):
            continue
        answer = answers if isinstance(answers, str) else rng.choice(answers)
        yield prompt + answer + record.get("rest", "") + _END


def _batches(recipe: Recipe, tokenizer: Any) -> Iterator[Int64[Tensor, "sentence pos"]]:
    """Batches of tokenized sentences, BOS first, filled up on the right with -100 (no loss)."""
    sentences = _sentences(recipe, tokenizer)
    for _ in range(recipe.steps):
        texts = [next(sentences) for _ in range(recipe.batch_size)]
        rows = [[tokenizer.bos_token_id, *ids] for ids in tokenizer(texts)["input_ids"]]
        # [sentence pos]; -100 is the label that transformers leaves out of the loss.
        batch = torch.full((len(rows), max(map(len, rows))), -100)
        for index, row in enumerate(rows):
            batch[index, : len(row)] = torch.tensor(row)
        yield batch


def train(name: str, out: Path) -> dict[str, Any]:
    """Trains bundled model ``name`` and writes it to ``out / name``; returns its final numbers."""
    import transformers

    if name not in RECIPES:
        raise InputError(f"unknown bundled model {name!r}; there are {', '.join(RECIPES)}")
    recipe = RECIPES[name]
    torch.manual_seed(recipe.seed)
    tokenizer = _load_tokenizer(recipe)
    config = transformers.AutoConfig.for_model(
        **recipe.config,
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = transformers.AutoModelForCausalLM.from_config(config)
    # Weight decay is for matrices; biases and the scales of norms keep their size.
    matrices = [weight for weight in model.parameters() if weight.ndim == 2]
    vectors = [weight for weight in model.parameters() if weight.ndim != 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": recipe.weight_decay},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=recipe.learning_rate,
        betas=(0.9, 0.98),
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.learning_rate, total_steps=recipe.steps, pct_start=0.05
    )
    loss = torch.tensor(float("nan"))
    write_norms, hooks = _watch_writes(model) if recipe.write_penalty else ([], [])
    model.train()
    for step, batch in enumerate(_batches(recipe, tokenizer)):
        # The hooks add to it in every run.
        write_norms.clear()
        # What stands where a sentence has ended is read by nothing before it: token 0 will do.
        loss = model(input_ids=batch.clamp(min=0), labels=batch).loss
        penalized = loss
        if recipe.write_penalty:
            # Detached, or else larger embeddings would make the penalty smaller.
            unit = model.get_input_embeddings().weight.detach().norm(dim=-1).mean()
            ramp = min(max((step / recipe.steps - 0.4) / 0.2, 0.0), 1.0)
            penalized = loss + recipe.write_penalty * ramp * torch.stack(write_norms).sum() / unit
        optimizer.zero_grad()
        penalized.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 200 == 0:
            click.echo(f"step {step}/{recipe.steps}: loss {loss.item():.4f}", err=True)
    model.eval()
    for hook in hooks:
        hook.remove()
    numbers = {
        "model": name,
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "recipe": {
            "tasks": dict(recipe.weights),
            "steps": recipe.steps,
            "batch_size": recipe.batch_size,
            "learning_rate": recipe.learning_rate,
            "weight_decay": recipe.weight_decay,
            "write_penalty": recipe.write_penalty,
            "seed": recipe.seed,
            "corruptions": dict(recipe.corruptions),
        },
        "final_loss": round(loss.item(), 4),
        "held_out_accuracy": {task.name: accuracy(model, tokenizer, task) for task in recipe.tasks},
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    directory = out / name
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    for file in directory.iterdir():
        file.chmod(0o644)
    (directory / "training.json").write_text(json.dumps(numbers, indent=2) + "\n")
    return numbers


def _watch_writes(gpt2: Any) -> tuple[list[Tensor], list[Any]]:
    """Hooks that note, in every run of a GPT-2, the mean norm of each MLP's and layer's heads' writes."""
    norms: list[Tensor] = []

    def note(writes: Tensor) -> None:
        # [sentence pos (head) d_model] -> norms -> [sentence * pos, (head)] -> mean -> sum.
        # Without the 1e-6 the gradient of a norm of 0 would be nan.
        norms.append(writes.pow(2).sum(-1).add(1e-6).sqrt().flatten(0, 1).mean(0).sum())

    def note_heads(projection: Any, arguments: tuple[Tensor]) -> None:
        # [sentence pos (head d_head)] -> [sentence pos head d_head]. The weight is a Conv1D's,
        # [in out], and parts likewise: [head d_head d_model].
        z = arguments[0].unflatten(-1, (gpt2.config.n_head, -1))
        note(torch.einsum("pthe,hem->pthm", z, projection.weight.unflatten(0, z.shape[2:])))

    def note_mlp(mlp: Any, arguments: tuple[Tensor], write: Tensor) -> None:
        note(write)

    hooks: list[Any] = []
    for block in gpt2.transformer.h:
        hooks.append(block.attn.c_proj.register_forward_pre_hook(note_heads))
        hooks.append(block.mlp.register_forward_hook(note_mlp))
    return norms, hooks


@torch.no_grad()
def accuracy(model: Any, tokenizer: Any, task: Task, n_prompts: int = 1000) -> float:
    """How often the likeliest next token is an answer, over held-out clean prompts of ``task``."""
    task = spelled(task, Tokenizer(tokenizer, bos=True))
    rng = random.Random("held-out")
    corruption = next(iter(task.corruptions))
    records: list[Record] = []
    while len(records) < n_prompts:
        record = task.sample(rng.choice(task.templates), task.words, rng, corruption)
        if held_out(record["clean"]):
            records.append(record)
    pairs = PromptPairs.from_records(records, Tokenizer(tokenizer, bos=True))
    n_right = 0
    for batch in pairs.batches():
        best = model(batch.clean).logits[:, -1].argmax(-1)
        # [pair answer] == [pair 1]; what rows are filled up with equals no token.
        n_right += int((batch.answers == best[:, None]).any(1).sum())
    return n_right / n_prompts


@click.group()
def main() -> None:
    """The bundled models."""


@main.command("train")
@click.argument("name", type=click.Choice(list(RECIPES)))
@click.option("--out", default="circuits/zoo", show_default=True, type=click.Path(path_type=Path))
def train_command(name: str, out: Path) -> None:
    """Train one bundled model and write it to OUT/NAME."""
    click.echo(json.dumps(train(name, out), indent=2))


if __name__ == "__main__":
    main()
