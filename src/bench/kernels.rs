//! Prepares one op at a real shape for repeated runs: allocates its tensors and fills them first. Times nothing.

use super::measure::Target;
use super::work::{BLOCK_SIZE, Task, Work};
use crate::backend::ops::{self, AdamW, Heads, Linear, LinearGrads, Lora, Sampling, Segments, Trained};
use crate::error::{Error, Result};
use crate::model::config::RopeConfig;
use crate::model::config::RopeScaling;
use crate::model::index_tensor;
use crate::model::rope;
use crate::optimizer::squared_norm;
use crate::tensor::{DType, Tensor};

/// Work that a row repeats.
pub type Step<'a> = Box<dyn FnMut() -> Result<()> + 'a>;

/// Prepares the work of a kernel's row. Error: the task is not a kernel.
pub fn prepare<'a>(target: Target<'a>, work: &Work) -> Result<Step<'a>> {
    let backward = work.mode == "backward";
    match &work.task {
        Task::Linear { t, k, parts, rank } => linear(target, *t, *k, parts, *rank, backward),
        Task::Attention { t, heads } => attention(target, *t, *heads, backward),
        Task::LogProb { m, c, v } => logprob(target, *m, *c, *v, backward),
        Task::Logits { b, c, v } => {
            let be = target.backend;
            let (x, w) = (target.normal(&[*b, *c], 1.0, 1)?, target.normal(&[*v, *c], 0.02, 2)?);
            let mut out = be.alloc(&[*b, *v], be.accumulator())?;
            Ok(Box::new(move || ops::Logits { x: &x, w: &w, out: &mut out }.run(be)))
        }
        Task::RmsNorm { t, c } => rmsnorm(target, *t, *c, backward),
        Task::Rope { t, heads } => rotary(target, *t, *heads, backward),
        Task::SwiGlu { t, f } => {
            let be = target.backend;
            let gate_up = target.normal(&[*t, 2 * f], 1.0, 1)?;
            if backward {
                let (dy, mut d) = (target.normal(&[*t, *f], 1.0, 2)?, be.alloc(&[*t, 2 * f], be.activation())?);
                return Ok(Box::new(move || {
                    ops::SwigluBackward { gate_up: &gate_up, dy: &dy, dgate_up: &mut d }.run(be)
                }));
            }
            let mut y = be.alloc(&[*t, *f], be.activation())?;
            Ok(Box::new(move || ops::Swiglu { gate_up: &gate_up, y: &mut y }.run(be)))
        }
        Task::AdamW { shapes } => adamw(target, shapes),
        Task::SquaredNorm { shapes } => {
            let list = tensors(target, shapes, 1.0)?;
            let be = target.backend;
            Ok(Box::new(move || squared_norm(be, &list.iter().collect::<Vec<_>>()).map(drop)))
        }
        Task::Sample { b, v, filtered } => sample(target, *b, *v, *filtered),
        Task::Paged { b, context, heads } => paged(target, *b, *context, *heads),
        other => Err(Error::system(format!("{other:?} is no kernel"))),
    }
}

fn tensors(target: Target, shapes: &[[usize; 2]], deviation: f32) -> Result<Vec<Tensor>> {
    let one =
        |(i, shape): (usize, &[usize; 2])| target.random(shape, target.backend.accumulator(), deviation, i as u64);
    shapes.iter().enumerate().map(one).collect()
}

/// Prepares linear layers of these `widths` that share their input, as in a block.
fn linear<'a>(target: Target<'a>, t: usize, k: usize, widths: &[usize], r: usize, backward: bool) -> Result<Step<'a>> {
    let (be, n) = (target.backend, widths.iter().sum());
    let (wide, narrow) = (be.accumulator(), be.activation());
    let each = |one: &dyn Fn(usize, u64) -> Result<Tensor>| {
        widths.iter().enumerate().map(|(i, &n)| one(n, 10 * i as u64)).collect::<Result<Vec<_>>>()
    };
    let w = each(&|n, seed| target.normal(&[n, k], 0.02, seed))?; // contiguous, as in a model
    let a = each(&|_, seed| target.random(&[r, k], wide, 0.02, seed + 1))?;
    let b = each(&|n, seed| target.random(&[n, r], wide, 0.02, seed + 2))?;
    let mut s = each(&|_, seed| target.random(&[t, r], narrow, 1.0, seed + 3))?;
    let (x, mut y) = (target.normal(&[t, k], 1.0, 100)?, target.normal(&[t, n], 1.0, 101)?);
    if !backward {
        return Ok(Box::new(move || {
            let s = s.iter_mut().map(Some).collect();
            ops::Linears { x: &x, layers: &adapted(&w, &a, &b), y: &mut y, column: 0, s }.run(be)
        }));
    }
    let mut dx = be.alloc(&[t, k], narrow)?;
    let (mut da, mut db) = (each(&|_, _| be.alloc(&[r, k], wide))?, each(&|n, _| be.alloc(&[n, r], wide))?);
    Ok(Box::new(move || {
        let pairs = da.iter_mut().zip(&mut db);
        let grads = pairs.map(|pair| LinearGrads { lora: Some(pair), w: None, bias: None }).collect();
        let (layers, s) = (&adapted(&w, &a, &b), s.iter().map(Some).collect());
        ops::LinearsBackward { x: &x, layers, dy: &y, column: 0, s, dx: Some(&mut dx), grads }.run(be)
    }))
}

fn adapted<'a>(w: &'a [Tensor], a: &'a [Tensor], b: &'a [Tensor]) -> Vec<Linear<'a>> {
    let pairs = a.iter().zip(b);
    w.iter().zip(pairs).map(|(w, (a, b))| Linear { w, bias: None, lora: Some(Lora { a, b, scale: 2.0 }) }).collect()
}

fn attention<'a>(target: Target<'a>, t: usize, heads: Heads, backward: bool) -> Result<Step<'a>> {
    let (be, width) = (target.backend, heads.nh * heads.hs);
    let qkv = target.normal(&[t, heads.qkv_width()], 1.0, 1)?;
    let (cu, parent) = (index_tensor(be, &[2], &[0, t as i32])?, index_tensor(be, &[1], &[-1])?);
    let (mut o, mut lse) = (be.alloc(&[t, width], be.activation())?, be.alloc(&[heads.nh, t], be.accumulator())?);
    if !backward {
        return Ok(Box::new(move || {
            ops::Attention {
                qkv: &qkv,
                heads,
                segments: &Segments { cu_seqlens: &cu, parent: &parent },
                o: &mut o,
                lse: &mut lse,
            }
            .run(be)
        }));
    }
    ops::Attention {
        qkv: &qkv,
        heads,
        segments: &Segments { cu_seqlens: &cu, parent: &parent },
        o: &mut o,
        lse: &mut lse,
    }
    .run(be)?;
    let (dout, mut dqkv) = (target.normal(&[t, width], 1.0, 2)?, be.alloc(&[t, heads.qkv_width()], be.activation())?);
    Ok(Box::new(move || {
        let segments = Segments { cu_seqlens: &cu, parent: &parent };
        ops::AttentionBackward { qkv: &qkv, o: &o, lse: &lse, dout: &dout, heads, segments: &segments, dqkv: &mut dqkv }
            .run(be)
    }))
}

fn logprob<'a>(target: Target<'a>, m: usize, c: usize, v: usize, backward: bool) -> Result<Step<'a>> {
    let be = target.backend;
    let (x, w) = (target.normal(&[m, c], 1.0, 1)?, target.normal(&[v, c], 0.02, 2)?);
    let ids: Vec<i32> = (0..m).map(|i| ((i * 7919) % v) as i32).collect();
    let targets = index_tensor(be, &[m], &ids)?;
    let vector = || be.alloc(&[m], be.accumulator());
    let (mut logp, mut entropy, mut lse) = (vector()?, vector()?, vector()?);
    if !backward {
        return Ok(Box::new(move || {
            ops::LinearLogprob {
                x: &x,
                w: &w,
                targets: &targets,
                temperature: 1.0,
                logp: &mut logp,
                entropy: &mut entropy,
                lse: &mut lse,
            }
            .run(be)
        }));
    }
    ops::LinearLogprob {
        x: &x,
        w: &w,
        targets: &targets,
        temperature: 1.0,
        logp: &mut logp,
        entropy: &mut entropy,
        lse: &mut lse,
    }
    .run(be)?;
    let (dlogp, mut dx) = (target.random(&[m], be.accumulator(), 1.0, 3)?, be.alloc(&[m, c], be.activation())?);
    Ok(Box::new(move || {
        ops::LinearLogprobBackward {
            x: &x,
            w: &w,
            targets: &targets,
            temperature: 1.0,
            entropy: &entropy,
            lse: &lse,
            dlogp: &dlogp,
            dentropy: None,
            dx: &mut dx,
            dw: None,
        }
        .run(be)
    }))
}

fn rmsnorm<'a>(target: Target<'a>, t: usize, c: usize, backward: bool) -> Result<Step<'a>> {
    let be = target.backend;
    let (residual, x, w) =
        (target.normal(&[t, c], 1.0, 1)?, target.normal(&[t, c], 1.0, 2)?, target.normal(&[c], 1.0, 3)?);
    let (mut sum, mut y) = (be.alloc(&[t, c], be.activation())?, be.alloc(&[t, c], be.activation())?);
    let mut rstd = be.alloc(&[t], be.accumulator())?;
    if !backward {
        return Ok(Box::new(move || {
            ops::AddRmsnorm {
                residual: &residual,
                x: Some(&x),
                w: &w,
                eps: 1e-6,
                sum: Some(&mut sum),
                y: &mut y,
                rstd: &mut rstd,
            }
            .run(be)
        }));
    }
    be.fill(&mut rstd, 1.0)?;
    Ok(Box::new(move || {
        ops::AddRmsnormBackward { sum: &residual, w: &w, rstd: &rstd, dy: &x, dsum: &mut sum, dw: None }.run(be)
    }))
}

fn rotary<'a>(target: Target<'a>, t: usize, heads: Heads, backward: bool) -> Result<Step<'a>> {
    let be = target.backend;
    let mut qkv = target.normal(&[t, heads.qkv_width()], 1.0, 1)?;
    let positions = index_tensor(be, &[t], &(0..t as i32).collect::<Vec<_>>())?;
    let table = rope::table(be, &RopeConfig { theta: 1e6, scaling: RopeScaling::None }, t, heads.hs)?;
    if backward {
        return Ok(Box::new(move || {
            ops::QkNormRopeBackward {
                dqkv: &mut qkv,
                heads,
                norm: None,
                positions: &positions,
                table: &table,
                raw: None,
                dnorm: None,
            }
            .run(be)
        }));
    }
    Ok(Box::new(move || {
        ops::QkNormRope { qkv: &mut qkv, heads, norm: None, positions: &positions, table: &table, raw: None }.run(be)
    }))
}

fn adamw<'a>(target: Target<'a>, shapes: &[[usize; 2]]) -> Result<Step<'a>> {
    let be = target.backend;
    let (mut p, g, mut m) =
        (tensors(target, shapes, 0.02)?, tensors(target, shapes, 0.01)?, tensors(target, shapes, 0.01)?);
    let mut v = tensors(target, shapes, 0.01)?;
    v.iter_mut().try_for_each(|v| be.fill(v, 1e-4))?; // second moments are not negative
    let settings =
        AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.01, step: 10, grad_scale: 0.5 };
    Ok(Box::new(move || ops::AdamWStep { settings, tensors: Trained::of(&mut p, &g, &mut m, &mut v) }.run(be)))
}

fn sample<'a>(target: Target<'a>, b: usize, v: usize, filtered: bool) -> Result<Step<'a>> {
    let be = target.backend;
    let logits = target.random(&[b, v], be.accumulator(), 2.0, 1)?;
    let put = |value: f32| -> Result<Tensor> {
        let mut tensor = be.alloc(&[b], DType::F32)?;
        be.fill(&mut tensor, value)?;
        Ok(tensor)
    };
    let (temperature, top_p) = (put(1.0)?, put(if filtered { 0.9 } else { 1.0 })?);
    let top_k = index_tensor(be, &[b], &vec![if filtered { 50 } else { 0 }; b])?;
    let seed = index_tensor(be, &[b, 2], &(0..2 * b as i32).collect::<Vec<_>>())?;
    let counter = index_tensor(be, &[b], &vec![5; b])?;
    let (mut ids, mut logp) = (be.alloc(&[b], DType::I32)?, be.alloc(&[b], be.accumulator())?);
    Ok(Box::new(move || {
        let sampling =
            Sampling { temperature: &temperature, top_p: &top_p, top_k: &top_k, seed: &seed, counter: &counter };
        ops::Sample { logits: &logits, sampling: &sampling, ids: &mut ids, logp: &mut logp }.run(be)
    }))
}

fn paged<'a>(target: Target<'a>, b: usize, context: usize, heads: Heads) -> Result<Step<'a>> {
    let (be, pages) = (target.backend, context.div_ceil(BLOCK_SIZE));
    let cache = [b * pages * BLOCK_SIZE, heads.nkv * heads.hs];
    let (k, v) = (target.normal(&cache, 1.0, 1)?, target.normal(&cache, 1.0, 2)?);
    let qkv = target.normal(&[b, heads.qkv_width()], 1.0, 3)?;
    // As after decoding side by side: page p of sequence i is in block p B + i.
    let table: Vec<i32> = (0..b * pages).map(|i| ((i % pages) * b + i / pages) as i32).collect();
    let table = index_tensor(be, &[b, pages], &table)?;
    let lens = index_tensor(be, &[b], &vec![context as i32; b])?;
    let cu = index_tensor(be, &[b + 1], &(0..=b as i32).collect::<Vec<_>>())?;
    let mut o = be.alloc(&[b, heads.nh * heads.hs], be.activation())?;
    Ok(Box::new(move || {
        ops::AttentionPaged {
            qkv: &qkv,
            heads,
            k_cache: &k,
            v_cache: &v,
            block_size: BLOCK_SIZE,
            block_table: &table,
            lens: &lens,
            cu_q: &cu,
            o: &mut o,
        }
        .run(be)
    }))
}
