//! A critic's head.

use crate::support::{Draw, check};
use onestep::backend::ops;
use onestep::tensor::Tensor;

/// Rows and columns that fill no warp, block or piece of rows, and some that do.
const SHAPES: [[usize; 2]; 4] = [[1, 1], [5, 37], [64, 256], [131, 300]];

fn forward(draw: &mut Draw, [m, c]: [usize; 2]) -> Vec<Tensor> {
    let (x, w, bias) = (draw.normal(&[m, c]), draw.accumulated(&[1, c]), draw.accumulated(&[1]));
    let mut value = draw.unwritten_accumulated(&[m]);
    ops::ValueHead { x: &x, w: &w, bias: &bias, value: &mut value }.run(draw.backend).unwrap();
    vec![value]
}

fn backward(draw: &mut Draw, [m, c]: [usize; 2]) -> Vec<Tensor> {
    let (x, w, dvalue) = (draw.normal(&[m, c]), draw.accumulated(&[1, c]), draw.accumulated(&[m]));
    let (mut dw, mut dbias) = (draw.accumulated(&[1, c]), draw.accumulated(&[1]));
    let mut dx = draw.unwritten(&[m, c]);
    ops::ValueHeadBackward { x: &x, w: &w, dvalue: &dvalue, dx: &mut dx, dw: &mut dw, dbias: &mut dbias }
        .run(draw.backend)
        .unwrap();
    vec![dx, dw, dbias]
}

#[test]
fn values_and_gradients_are_the_oracles() {
    for shape in SHAPES {
        check("value_head", 0, |draw| forward(draw, shape));
        check("value_head_backward", 0, |draw| backward(draw, shape));
    }
}
