"""What a run takes on TPUs, from their compiler, with no TPU."""

import os

# Before jax is imported: no TPU is looked for.
os.environ |= {
  'JAX_PLATFORMS': 'cpu',
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  'TPU_LOG_DIR': 'disabled',
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}
