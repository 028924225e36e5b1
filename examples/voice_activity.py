"""Makes a sequence model of silero-vad as it is published, without PyTorch.

The published module keeps its state from one piece of audio to the next. What is added is a module
around it that begins anew when a sequence does, as Triton's sequence control tells it.
"""

from __future__ import annotations

import torchscript_file

SAMPLE_RATE = 16000
CODE = """
class VoiceActivity(Module):
  __parameters__ = []
  __buffers__ = []
  training : bool
  vad : {vad}
  def forward(self: __torch__.VoiceActivity, audio: Tensor, START: Tensor) -> Tensor:
    if bool(torch.gt(torch.max(START), 0)):
      _0 = (self.vad).reset_states()
    else:
      pass
    return (self.vad).forward(audio, {rate})
"""


def convert(published: bytes) -> bytes:
    """TorchScript with `audio` FP32 [1, 512], 32 ms at 16 kHz, and `START` FP32 [1, 1]; it returns how likely
    it is that somebody speaks, FP32 [1, 1]."""
    code = CODE.format(vad=torchscript_file.root_class(published), rate=SAMPLE_RATE)
    return torchscript_file.wrap(published, code, "__torch__.VoiceActivity", "vad")
