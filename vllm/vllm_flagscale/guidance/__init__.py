"""Classifier-free guidance in vLLM: each token is drawn from `negative + scale * (prompt - negative)`.

A guided request stays one request. Inside the engine, the scheduler (`scheduler`) adds a *twin*, a request of
its own with the negative prompt, and keeps both in lockstep. The logits processor (`processor`) combines the
logits of the two rows, draws one token, and forces it on both.
"""
