//! Values of index tensors, for backends whose tensors lie on the host.

use crate::error::{Error, Result};

/// Every value names one of `limit` things; `what` says which (`id`, `position`) and `of` what there are so many (`V`).
pub fn indices(op: &str, what: &str, values: &[i32], of: &str, limit: usize) -> Result<()> {
    match values.iter().position(|&i| usize::try_from(i).map_or(true, |i| i >= limit)) {
        None => Ok(()),
        Some(at) => {
            let value = values[at];
            Err(Error::content(format!("{op}: {what} {value} at index {at} is not in 0..{limit} ({of} = {limit})")))
        }
    }
}

/// Offsets run from 0 to `end` and never fall.
fn offsets(op: &str, name: &str, values: &[i32], end: usize) -> Result<()> {
    let good = values.first() == Some(&0)
        && values.last().is_some_and(|&last| usize::try_from(last) == Ok(end))
        && values.is_sorted();
    if good {
        Ok(())
    } else {
        Err(Error::content(format!("{op}: {name} must rise from 0 to {end}, but is {values:?}")))
    }
}

/// Segment offsets cover the `t` rows, and a parent lies earlier and has no parent itself.
pub fn segment_values(op: &str, cu_seqlens: &[i32], parent: &[i32], t: usize) -> Result<()> {
    offsets(op, "cu_seqlens", cu_seqlens, t)?;
    for (s, &p) in parent.iter().enumerate() {
        let good = p == -1 || usize::try_from(p).is_ok_and(|p| p < s && parent[p] == -1);
        if !good {
            return Err(Error::content(format!(
                "{op}: segment {s} has parent {p}; expected -1 or an earlier segment that has no parent"
            )));
        }
    }
    Ok(())
}

/// Queries are covered, no sequence has more queries than tokens, and every page in use exists.
pub fn page_values(
    op: &str,
    block_table: &[i32],
    lens: &[i32],
    cu_q: &[i32],
    q: usize,
    block_size: usize,
    blocks: usize,
) -> Result<()> {
    offsets(op, "cu_q", cu_q, q)?;
    let pages = block_table.len().checked_div(lens.len()).unwrap_or(0);
    for (b, &len) in lens.iter().enumerate() {
        let queries = cu_q[b + 1] - cu_q[b];
        let used = usize::try_from(len).unwrap_or(usize::MAX).div_ceil(block_size);
        if len < queries || used > pages {
            return Err(Error::content(format!(
                "{op}: sequence {b} has {len} tokens and {queries} queries; expected at least as many tokens as queries, and \
                 at most {pages} pages of {block_size}"
            )));
        }
        indices(op, "page", &block_table[b * pages..b * pages + used], "blocks", blocks)?;
    }
    Ok(())
}

/// What `sample` says of row `b` of its logits when nothing can be drawn from it.
pub fn no_distribution(b: usize) -> Error {
    Error::content(format!(
        "sample: row {b} of logits has NaN, +inf or no finite logit: the weights or the adapter are broken, or a value overflowed"
    ))
}

/// Sampling settings are in range: temperature finite and at least 0, top_p in (0, 1], top_k at least 0.
pub fn sampling_values(temperature: &[f32], top_p: &[f32], top_k: &[i32]) -> Result<()> {
    for (b, ((&t, &p), &k)) in temperature.iter().zip(top_p).zip(top_k).enumerate() {
        if !(t >= 0.0 && t.is_finite() && p > 0.0 && p <= 1.0 && k >= 0) {
            return Err(Error::content(format!(
                "sample: row {b} has temperature {t}, top_p {p}, top_k {k}; expected temperature >= 0, 0 < top_p <= 1, \
                 top_k >= 0"
            )));
        }
    }
    Ok(())
}
