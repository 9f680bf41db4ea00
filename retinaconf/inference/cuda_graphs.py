"""A network's kernels on a GPU, recorded once and replayed (CUDA graphs), for one image at a time.

A pass over one image starts about a thousand short kernels. The CPU takes longer to start them than the GPU to run
them. A recording starts them all at once.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from retinaconf.model.retinanet import Outputs, RetinaNet

RECORDED_AT = 10  # which pass over a shape is recorded: to record takes as long as some passes
MOST = 8  # recordings; each holds the outputs of a pass


class Recording(NamedTuple):
    """A pass over tensors that stay where they are."""

    images: Tensor
    sizes: Tensor
    graph: torch.cuda.CUDAGraph
    outputs: Outputs
    weights: list[Tensor]  # held here, so that no others come to lie at their address


class CudaGraphs:
    """Calls a network on a CUDA GPU as `network(images, sizes)` does, and replays shapes that have come often.

    More than one image, and passes that keep gradients, go through the network itself. So do passes on a stream of
    their own. Hooks on the network's modules do not run in a replay.
    """

    def __init__(self, network: RetinaNet):
        self.network = network
        self.passes: Counter[tuple[Any, ...]] = Counter()  # over each shape, before it is recorded
        self.recordings: OrderedDict[tuple[Any, ...], Recording | None] = OrderedDict()  # None: it could not be
        self.memory = torch.cuda.graph_pool_handle()  # of all passes, which never run side by side
        self.lock = threading.Lock()

    def __reduce__(self) -> tuple[Callable[..., CudaGraphs], tuple[RetinaNet]]:
        return CudaGraphs, (self.network,)  # a copy makes its own recordings

    def __call__(self, images: Tensor, sizes: Tensor) -> Outputs:
        """The arguments and the result of `RetinaNet.forward`."""
        with torch.cuda.device(images.device):
            usual_stream = torch.cuda.current_stream() == torch.cuda.default_stream()
            if len(images) == 1 and usual_stream and not torch.is_grad_enabled():
                with self.lock:
                    recording = self._recording(images, sizes)
                    if recording is not None:
                        recording.images.copy_(images)
                        recording.sizes.copy_(sizes)
                        recording.graph.replay()
                        return _copied(recording.outputs)
            outputs: Outputs = self.network(images, sizes)
            return outputs

    def _recording(self, images: Tensor, sizes: Tensor) -> Recording | None:
        """What was recorded of this shape, or is now; None if the network should be called."""
        weight = self.network.head.class_conv.weight
        precision = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else weight.dtype
        # The address changes when the weights are moved or converted.
        key = (images.shape, images.dtype, sizes.dtype, precision, weight.data_ptr())
        if key not in self.recordings:
            self.passes[key] += 1
            if self.passes[key] < RECORDED_AT:
                return None
            try:
                self.recordings[key] = self._record(images, sizes)
            except RuntimeError:  # out of memory, or a backbone that reads from the GPU while it computes
                self.recordings[key] = None
            if len(self.recordings) > MOST:
                self.recordings.popitem(last=False)
        self.recordings.move_to_end(key)
        return self.recordings[key]

    @torch.inference_mode(False)
    @torch.no_grad()
    def _record(self, images: Tensor, sizes: Tensor) -> Recording:
        images, sizes = images.clone(), sizes.clone()
        usual, aside = torch.cuda.current_stream(), torch.cuda.Stream()
        aside.wait_stream(usual)
        with torch.cuda.stream(aside):  # what is made once, such as handles and anchors, is made before
            self.network(images, sizes)
        usual.wait_stream(aside)
        torch.clear_autocast_cache()  # weights in bfloat16 would be gone at the next replay
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, pool=self.memory, stream=aside, capture_error_mode="thread_local"):
                outputs = self.network(images, sizes)
        finally:
            torch.cuda.set_stream(usual)  # where a recording fails, torch stays on the stream aside
            torch.clear_autocast_cache()
        weights = [tensor.detach() for tensor in (*self.network.parameters(), *self.network.buffers())]
        return Recording(images, sizes, graph, outputs, weights)


def _copied(outputs: Outputs) -> Outputs:
    """What the next replay overwrites, in memory of its own; the anchors stay as they are."""
    quality_logits, box_logits = outputs.quality_logits, outputs.box_logits
    return outputs._replace(
        class_logits=outputs.class_logits.clone(),
        box_deltas=outputs.box_deltas.clone(),
        quality_logits=None if quality_logits is None else quality_logits.clone(),
        box_logits=None if box_logits is None else box_logits.clone(),
    )
