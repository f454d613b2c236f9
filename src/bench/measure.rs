//! Measures time: by the device's clock, with the second-level cache flushed before each repeat, as the median of as
//! many repeats as a row's time allows. Also makes random-normal inputs and random models.

use crate::backend::Backend;
use crate::backend::cuda::Cuda;
use crate::backend::cuda::device::Device;
use crate::backend::ops::Heads;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::model::config::{ModelConfig, RopeConfig, RopeScaling};
use crate::model::shapes::named;
use crate::rng::Philox;
use crate::tensor::{DType, Tensor};
use serde::{Deserialize, Serialize};
use std::time::Instant;

/// Backend under test: a GPU, or the CPU to try out the bench itself.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// Backend that runs the ops.
    pub backend: &'a dyn Backend,
    gpu: Option<&'a Cuda>,
}

impl<'a> Target<'a> {
    /// A target for a GPU, or for an emulation of one.
    pub fn gpu(gpu: &'a Cuda) -> Self {
        Self { backend: gpu, gpu: Some(gpu) }
    }

    /// A target for a backend without a device; its clock is the host's.
    pub fn host(backend: &'a dyn Backend) -> Self {
        Self { backend, gpu: None }
    }

    /// The device that runs the kernels, if there is one.
    pub fn device(&self) -> Option<&'a dyn Device> {
        self.gpu.map(Cuda::device)
    }

    /// The GPU's name, or the backend's.
    pub fn name(&self) -> String {
        self.device().map_or_else(|| self.backend.name().to_string(), |d| d.name().to_string())
    }

    /// Name of the activation type, as written in rows.
    pub fn dtype(&self) -> String {
        format!("{:?}", self.backend.activation()).to_lowercase()
    }

    /// Free and total bytes of the device's memory; without a device, of the host's (/proc/meminfo).
    pub fn memory(&self) -> Result<(usize, usize)> {
        if let Some(device) = self.device() {
            return device.memory();
        }
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let field = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<usize>().ok().map(|kb| kb * 1024)
        };
        Ok((field("MemAvailable:").unwrap_or(0), field("MemTotal:").unwrap_or(0)))
    }

    /// Seconds that `work` takes, by the device's clock or the host's.
    pub fn elapsed(&self, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
        match self.device() {
            Some(device) => device.elapsed(work),
            None => {
                let clock = Instant::now();
                work()?;
                Ok(clock.elapsed().as_secs_f64())
            }
        }
    }

    /// Fills `tensor` with normal numbers of standard deviation `deviation`, on the GPU if there is one, else on the
    /// host.
    pub fn random_normal(&self, tensor: &mut Tensor, deviation: f32, seed: u64) -> Result<()> {
        if let Some(gpu) = self.gpu {
            return gpu.random_normal(tensor, deviation, seed);
        }
        let mut random = Philox::new(seed, 0);
        let mut host = Tensor::zeros(tensor.shape(), DType::F32);
        host.slice_mut::<f32>().fill_with(|| deviation * random.normal() as f32);
        self.backend.write(tensor, &host)
    }

    /// A new tensor of normal numbers in the activation type.
    pub fn normal(&self, shape: &[usize], deviation: f32, seed: u64) -> Result<Tensor> {
        self.random(shape, self.backend.activation(), deviation, seed)
    }

    /// A new tensor of normal numbers.
    pub fn random(&self, shape: &[usize], dtype: DType, deviation: f32, seed: u64) -> Result<Tensor> {
        let mut tensor = self.backend.alloc(shape, dtype)?;
        self.random_normal(&mut tensor, deviation, seed)?;
        Ok(tensor)
    }

    /// A model with random weights in the activation type: standard deviation 0.02, norms 1, biases 0.
    pub fn random_model(&self, config: ModelConfig) -> Result<Model> {
        let mut seed = 0;
        Model::new(self.backend, config, &mut |name, shape| {
            seed += 1;
            let mut tensor = self.backend.alloc(shape, self.backend.activation())?;
            if name.ends_with("norm.weight") {
                self.backend.fill(&mut tensor, 1.0)?;
            } else if !name.ends_with(".bias") {
                self.random_normal(&mut tensor, 0.02, seed)?;
            }
            Ok(tensor)
        })
    }
}

/// Shape of the published model `name`, or of a tiny one for "tiny". Error: an unknown name.
pub fn shape(name: &str) -> Result<ModelConfig> {
    if name != "tiny" {
        return named(name);
    }
    Ok(ModelConfig {
        vocab: 96,
        hidden: 64,
        layers: 2,
        heads: Heads { nh: 2, nkv: 1, hs: 64 },
        mlp: 96,
        rms_eps: 1e-6,
        rope: RopeConfig { theta: 1e6, scaling: RopeScaling::None },
        tied: false,
        qkv_bias: true,
        o_bias: false,
        qk_norm: false,
        max_positions: 256,
    })
}

/// Quantiles of repeated timings, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// Half of the times are below it.
    pub median: f64,
    /// A fifth of the times are below it.
    pub p20: f64,
    /// A fifth of the times are above it.
    pub p80: f64,
    /// Number of repeats.
    pub repeats: usize,
}

impl Times {
    /// Quantiles of `seconds`; `None` when it is empty.
    pub fn of(mut seconds: Vec<f64>) -> Option<Self> {
        seconds.sort_by(f64::total_cmp);
        let quantile = |q: f64| {
            let at = q * seconds.len().checked_sub(1)? as f64;
            let (low, high) = (seconds[at.floor() as usize], seconds[at.ceil() as usize]);
            Some(low + (high - low) * at.fract())
        };
        Some(Self { median: quantile(0.5)?, p20: quantile(0.2)?, p80: quantile(0.8)?, repeats: seconds.len() })
    }
}

/// How a row is timed.
#[derive(Debug, Clone, Copy)]
pub struct Method {
    /// Seconds that the repeats of a row may take, approximately.
    pub seconds: f64,
    /// Fewest repeats; cut down to 2 when they would take more than five times `seconds`.
    pub fewest: usize,
    /// Most repeats.
    pub most: usize,
    /// Untimed runs before the repeats; slow work gets two at most.
    pub warmups: usize,
}

impl Times {
    /// Times of a single run, when `runs` equal runs were timed together.
    pub fn of_one(self, runs: usize) -> Self {
        let part = |seconds: f64| seconds / runs.max(1) as f64;
        Self { median: part(self.median), p20: part(self.p20), p80: part(self.p80), ..self }
    }
}

/// Times work by a method; overwrites the cache before each repeat.
pub struct Stopwatch<'a> {
    target: Target<'a>,
    flush: Option<Tensor>,
}

impl<'a> Stopwatch<'a> {
    /// Makes a stopwatch that flushes the cache by writing `flush_bytes`; 0 flushes nothing.
    pub fn new(target: Target<'a>, flush_bytes: usize) -> Result<Self> {
        let flush = (flush_bytes > 0).then(|| target.backend.alloc(&[flush_bytes / 4], DType::F32)).transpose()?;
        Ok(Self { target, flush })
    }

    /// Runs `work` untimed to warm up, then times its repeats.
    pub fn measure(&mut self, method: Method, work: &mut dyn FnMut() -> Result<()>) -> Result<Times> {
        let mut once = 0.0;
        for warmup in 0..method.warmups.max(1) {
            once = self.target.elapsed(work)?;
            // The first run may compile. Slow work is warm enough after the second.
            if warmup > 0 && once > 2.0 * method.seconds {
                break;
            }
        }
        let within = |seconds: f64| (seconds / once.max(1e-9)) as usize;
        let fewest = method.fewest.min(within(5.0 * method.seconds).max(2));
        let mut seconds = vec![];
        for _ in 0..within(method.seconds).clamp(fewest, method.most) {
            if let Some(flush) = &mut self.flush {
                self.target.backend.fill(flush, 0.0)?;
            }
            seconds.push(self.target.elapsed(work)?);
        }
        Times::of(seconds).ok_or_else(|| Error::system("a row without repeats"))
    }
}
