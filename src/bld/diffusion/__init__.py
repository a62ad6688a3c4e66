"""Bernoulli diffusion: the mathematics of the paper's Section 4 and nothing else; a network is any callable.

schedule    k_t, the retention: all there is to a noise schedule                    eq. (4), (5), Appendix A
steps       z_0 → z_t, and the exact reverse step as one affine map of flips        eq. (5), (8), (9)
loss        BCE + λ·VLB on flips                                                    eq. (7), (12), (13)
sampling    from uniform bits to a code, on any sub-sequence of the steps           Algorithm 2
guidance    classifier-free, on logits                                              Appendix C
corrector   a training-free Gibbs move that leaves q(z_t) invariant
likelihood  the variational bound in bits per code                                  eq. (7)
bernoulli   all of it as one object
process     what every way of generating codes offers; the alternatives are in `bld.priors`
"""

from bld.diffusion.bernoulli import BernoulliDiffusion
from bld.diffusion.corrector import gibbs_flip_probs, leave_one_out_logits
from bld.diffusion.guidance import with_guidance
from bld.diffusion.loss import DiffusionLoss
from bld.diffusion.sampling import SamplingStep, sample_codes
from bld.diffusion.schedule import NoiseSchedule

__all__ = [
    "BernoulliDiffusion",
    "DiffusionLoss",
    "NoiseSchedule",
    "SamplingStep",
    "gibbs_flip_probs",
    "leave_one_out_logits",
    "sample_codes",
    "with_guidance",
]
