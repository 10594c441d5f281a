"""Who trains a study's SAEs: this package, and SAELens as the yardstick."""

import json

import jax.numpy as jnp

from jumprelu_jax import loop
from jumprelu_jax import products
from jumprelu_jax import progress
from jumprelu_jax import train
from jumprelu_jax.activations import batches as batches_lib
from jumprelu_jax.sae import released


def train_ours(run, inputs, store, folder):
  """Trains one of our SAEs; returns it folded."""
  state = loop.fit(run, store, inputs.mesh, folder)
  return train.release(run, state, store.scales)


def train_saelens(run, inputs, store, folder):
  """Trains SAELens' JumpReLU on the same batches; returns it folded."""
  del inputs
  batches = batches_lib.Batches(store, run.train.batch_size, run.stream_seed)
  steps = run.train.steps
  rows = (batches[i].astype('float32') / store.scale for i in range(steps))
  trainer = saelens_trainer(run, store.d_model, rows)
  with (folder / 'metrics.jsonl').open('w') as curve:
    window = []
    with progress.track('SAELens', steps, 'steps') as bar:
      for step in range(1, steps + 1):
        out = trainer.step(next(trainer.data_provider))
        window.append((out.feature_acts > 0).float().sum(-1).mean().item())
        if step % run.train.steps_per_log == 0:
          l0 = sum(window) / len(window)
          curve.write(json.dumps({'step': step, 'l0': l0}) + '\n')
          bar.advance(len(window), l0=l0)
          window.clear()
  sae = trainer.sae
  state = {k: jnp.asarray(v.numpy()) for k, v in sae.state_dict().items()}
  b_enc = state['b_enc']
  if sae.cfg.apply_b_dec_to_input:
    b_enc = b_enc - products.matmul(state['b_dec'], state['W_enc'])
  return released.SAE(
    W_enc=state['W_enc'],
    b_enc=store.scale * b_enc,
    W_dec=state['W_dec'],
    b_dec=store.scale * state['b_dec'],
    threshold=store.scale * jnp.maximum(state['threshold'], 0),
  )


def saelens_trainer(run, d_model, rows):
  """Returns SAELens' trainer of a JumpReLU SAE.

  Its own defaults where the config does not set a value: raw thresholds, a free
  decoder norm that starts at 0.1, b_dec subtracted from the input, gradients
  clipped at global norm 1. A decay over the whole run is a cosine, as ours; one
  at its end is linear.

  Args:
    run: the config.
    d_model: size of an activation.
    rows: iterator over batches, float32 arrays of unit mean squared norm.
  """
  import sae_lens
  from sae_lens import config as sae_lens_config
  import torch

  steps, share = run.train.steps, run.optimizer.decay_fraction
  is_cosine = share == 1
  torch.manual_seed(run.seed)
  sae = sae_lens.JumpReLUTrainingSAE(
    sae_lens.JumpReLUTrainingSAEConfig(
      d_in=d_model,
      d_sae=run.sae.num_latents,
      l0_coefficient=run.objective.sparsity_coeff,
      l0_warm_up_steps=run.objective.sparsity_warmup_steps,
      jumprelu_bandwidth=run.objective.bandwidth,
      jumprelu_init_threshold=run.sae.initial_threshold,
    )
  )
  return sae_lens.SAETrainer(
    cfg=sae_lens_config.SAETrainerConfig(
      total_training_samples=steps * run.train.batch_size,
      train_batch_size_samples=run.train.batch_size,
      lr=run.optimizer.learning_rate,
      lr_end=run.optimizer.learning_rate / 100,
      lr_warm_up_steps=run.optimizer.warmup_steps,
      lr_scheduler_name='cosineannealing' if is_cosine else 'constant',
      lr_decay_steps=0 if is_cosine else round(share * steps),
      adam_beta1=run.optimizer.beta1,
      adam_beta2=run.optimizer.beta2,
      device='cpu',
      logger=sae_lens.LoggingConfig(log_to_wandb=False),
    ),
    sae=sae,
    data_provider=map(torch.from_numpy, rows),
  )
