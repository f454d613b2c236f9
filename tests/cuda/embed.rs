//! Embedding, from tables in bf16 and f32, and its gradient, with tokens that come more than once.

use crate::support::check;
use onestep::backend::ops;
use onestep::tensor::DType;

/// (V, C, T)
const SHAPES: [(usize, usize, usize); 5] = [(11, 7, 5), (11, 33, 5), (6, 192, 40), (300, 200, 20), (3, 8, 700)];

#[test]
fn rows_of_the_table_come_in_the_activation_type() {
    for (v, c, t) in SHAPES {
        for dtype in [DType::BF16, DType::F32] {
            check("embed", 0, |d| {
                // Not exact in bf16, so that the rounding of an f32 table is seen.
                let values: Vec<f32> = d.values(v * c, 1.0).iter().map(|x| x * 1.001).collect();
                let (wte, ids, mut out) = (d.put(&[v, c], &values, dtype), d.below(t, v), d.unwritten(&[t, c]));
                ops::Embed { ids: &ids, wte: &wte, out: &mut out }.run(d.backend).unwrap();
                vec![out]
            });
        }
    }
}

#[test]
fn gradients_are_added_in_token_order() {
    for (v, c, t) in SHAPES {
        check("embed_backward", 0, |d| {
            let (dout, ids, mut dwte) = (d.normal(&[t, c]), d.below(t, v), d.accumulated(&[v, c]));
            ops::EmbedBackward { ids: &ids, dout: &dout, dwte: &mut dwte }.run(d.backend).unwrap();
            vec![dwte]
        });
    }
}
