"""Where the time of a training step goes: decoding, model, loss.

    python -m examples.vttwins.throughput demo

Each part is timed alone on real batches of the preset's data, so nothing overlaps; in training,
the decoding runs in other processes. Seconds of CPU are those of this process, all its threads
together: on a busy machine they are the number to trust.

Requirements: as train.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from examples.vttwins import build, config, data, loading
from examples.vttwins.config import Settings
from examples.vttwins.distributed import device_of
from examples.vttwins.loading import LoadingError
from examples.vttwins.words import Vocabulary


def timed(work: Callable[[], object], repeats: int, device: torch.device) -> tuple[float, float]:
    """Mean wall and CPU seconds of a call, after one call to warm up."""
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats


def measure(settings: Settings, repeats: int = 3) -> dict[str, tuple[float, float]]:
    """Wall and CPU seconds of the parts of one step: {"decode", "model", "loss", "optimizer"}."""
    root, device = Path(settings.data), device_of(settings.device or "cpu")
    videos = data.read_column(root / settings.train_csv, "video_path")
    vocabulary = None
    if not settings.word_vectors:
        vocabulary = build.vocabulary_of(build.build_dataset(settings, videos, Vocabulary([])))
    model, vocabulary = build.build_model(settings, vocabulary)
    model.to(device)
    # torch's types do not know this overload.
    model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    loss = build.build_loss(settings)
    optimizer = torch.optim.Adam(p for p in model.parameters() if p.requires_grad)
    clips = build.build_dataset(settings, videos, vocabulary)
    addresses = next(iter(loading.StepBatches(len(videos), settings.batch, 1)))

    def decode() -> dict[str, object]:
        return loading.collate([clips[address] for address in addresses])

    batch = loading.collate([clips[address] for address in addresses])
    video = batch["video"].to(device).flatten(0, 1).float().div_(255)
    video = video.contiguous(memory_format=torch.channels_last_3d)
    words = batch["words"].to(device).flatten(0, 1)

    def encode() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16):
            v, t = model(video, words)
        (v.square().mean() + t.square().mean()).backward()
        return v.detach().float(), t.detach().float()

    v, t = encode()

    def compare() -> None:
        a = F.normalize(v, dim=-1).unflatten(0, (settings.batch, settings.clips)).requires_grad_()
        b = F.normalize(t, dim=-1).unflatten(0, (settings.batch, settings.captions))
        loss(a, b.requires_grad_()).backward()

    return {
        "decode": timed(decode, repeats, device),
        "model": timed(encode, repeats, device),
        "loss": timed(compare, repeats, device),
        "optimizer": timed(optimizer.step, repeats, device),
    }


# Megabytes of activations a clip for backward, 16 frames of 224 pixels: growth of the peak memory
# of a process from one clip to three, on a CPU. Without and with --checkpointing.
CLIP_MB = {(False, False): 425, (True, False): 164, (False, True): 343, (True, True): 165}


def memory_estimate(settings: Settings, processes: int = 1) -> float:
    """Gigabytes that each process needs for a step: computed from measurements, not measured.

    Activations by ``CLIP_MB``, in proportion to the pixels, for the clips of one process; and 16
    bytes for each of 11.3 million trained parameters: itself, its gradient, two moments of Adam.

    Example:
        >>> round(memory_estimate(config.preset("paper"), 8))
        55
    """
    pixels = settings.frames * settings.size**2 / (16 * 224**2)
    clips = settings.batch * settings.clips / processes
    megabytes = CLIP_MB[settings.checkpointing, settings.bf16] * pixels * clips
    return (megabytes * 1e6 + 16 * 11_315_408) / 1e9


def main(arguments: list[str] | None = None) -> None:
    settings, _ = config.parse(arguments, __doc__, Settings, config.PRESETS)
    config.check_files(settings)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    try:
        parts = measure(settings)
    except (ValueError, OSError, LoadingError) as error:  # mostly a file that does not fit
        raise SystemExit(f"{type(error).__name__}: {error}") from error
    clips = settings.batch * settings.clips
    print(f"one step: {settings.batch} sequences of {settings.clips} clips = {clips} clips")
    print(f"{'part':12}{'wall s':>9}{'CPU s':>9}{'wall share':>12}")
    total = sum(wall for wall, _ in parts.values())
    for name, (wall, cpu) in parts.items():
        print(f"{name:12}{wall:9.4f}{cpu:9.4f}{100 * wall / total:11.1f}%")
    step = total - parts["decode"][0]
    needs = (f"{memory_estimate(settings, count):.1f} GB on {count}" for count in (1, 8))
    print(f"memory of a process, computed, when the batch is shared: {', '.join(needs)}")
    print(
        f"{clips / total:.0f} clips/s one after the other, {clips / step:.0f} with decoding aside"
    )


if __name__ == "__main__":
    main()
