"""Frozen encoder: decoder and head alone are fine-tuned."""

from trm_bench.methods import Context

from .encoder import EncoderMethod


class FrozenEncoder(EncoderMethod):
    """Fine-tuning of decoder and head; not a bit of the encoder moves.

    The encoder's parameters get no gradient and are not in the optimiser, so that weight decay does
    not reach them. Its normalisation layers that keep moving statistics use them, in training too,
    as the source left them.

    Raises:
        UserError: Which part of the network is the encoder is not known.
    """

    name = "frozen_encoder"
    paper = "-"

    def prepare(self, run: Context) -> None:
        super().prepare(run)
        encoder = set(run.parts.encoder)
        for name, parameter in run.network.named_parameters():
            if name in encoder:
                parameter.requires_grad_(False)
        self.norms = [
            module
            for name, module in run.network.named_modules()
            if any(
                f"{name}.{buffer}" in encoder for buffer, _ in module.named_buffers(recurse=False)
            )
        ]

    def training_mode(self, run: Context) -> None:
        super().training_mode(run)
        for norm in self.norms:
            norm.eval()
