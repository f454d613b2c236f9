//! Small charts as inline SVG: lines, stacked columns, dots with intervals, one bar. Colours are classes (`c0`, `c1`,
//! ...) that page.html defines for light and dark; every mark carries its value as a tooltip. Knows nothing of runs.

use super::html::{escape, number};
use std::fmt::Write;

/// One line of a chart.
pub struct Series<'a> {
    /// Name in the legend.
    pub name: &'a str,
    /// Colour class.
    pub colour: usize,
    /// (x, y) in the order of x; a y that is not finite is a gap.
    pub points: Vec<(f64, f64)>,
}

/// One layer of a stack of columns.
pub struct Layer<'a> {
    /// Name in the legend.
    pub name: &'a str,
    /// Colour class.
    pub colour: usize,
    /// A height for each x.
    pub heights: Vec<f64>,
}

/// A dot with its interval.
pub struct Dot {
    /// Colour class.
    pub colour: usize,
    /// Name in the tooltip.
    pub name: String,
    /// Position on the x axis.
    pub value: f64,
    /// Its interval (low, high), if there is one.
    pub interval: Option<(f64, f64)>,
}

/// The layout of a chart.
pub struct Frame<'a> {
    /// Width and height in SVG units; text is 11 units high.
    pub size: (f64, f64),
    /// Label of the x axis; empty for none.
    pub x_label: &'a str,
    /// Values that the y axis always covers.
    pub include: &'a [f64],
    /// Dashed horizontal lines: (y, text on the line).
    pub limits: &'a [(f64, &'a str)],
}

const LEFT: f64 = 46.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 8.0;

/// A linear axis with round ticks that covers its data.
struct Axis {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
    decimals: usize,
}

impl Axis {
    /// An axis over the finite `values` with round ticks, about `want` of them; whole numbers when `whole`; with its
    /// ends on ticks when `snap`. `None` when no value is finite.
    fn new(values: impl Iterator<Item = f64>, want: f64, whole: bool, snap: bool) -> Option<Self> {
        let (mut low, mut high) = values
            .filter(|v| v.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), v| (low.min(v), high.max(v)));
        if low > high {
            return None;
        }
        if high - low < 1e-9 * high.abs().max(1e-9) {
            // A constant gets room on both sides; a constant 0 only above it, since it is one of shares or counts.
            let pad = if whole { 1.0 } else { 0.1 * high.abs() };
            (low, high) = if high == 0.0 && !whole { (0.0, 1.0) } else { (low - pad, high + pad) };
        }
        let raw = (high - low) / want;
        let power = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|&s| s >= raw * 0.999).unwrap_or(raw);
        let step = if whole { step.max(1.0).round() } else { step };
        if snap {
            (low, high) = ((low / step + 1e-9).floor() * step, (high / step - 1e-9).ceil() * step);
        }
        let (first, last) = ((low / step - 1e-9).ceil() as i64, (high / step + 1e-9).floor() as i64);
        let ticks = (first..=last).map(|i| i as f64 * step).collect();
        Some(Self { low, high, ticks, decimals: (-step.log10().floor()).clamp(0.0, 9.0) as usize })
    }

    /// The position of `value` between `from` (the axis' low end) and `to`.
    fn place(&self, value: f64, from: f64, to: f64) -> f64 {
        from + (value - self.low) / (self.high - self.low) * (to - from)
    }

    fn text(&self, tick: f64) -> String {
        format!("{tick:.*}", self.decimals).replace('-', "\u{2212}")
    }
}

fn open(width: f64, height: f64, label: &str) -> String {
    format!(r#"<svg viewBox="0 0 {width} {height}" role="img" aria-label="{}">"#, escape(label))
}

/// Draws grid and labels of both axes; returns the drawing area (left, right, top, bottom).
fn axes(out: &mut String, frame: &Frame, x: &Axis, y: &Axis, x_inset: f64) -> (f64, f64, f64, f64) {
    let (width, height) = frame.size;
    let (left, right, top) = (LEFT, width - RIGHT, TOP);
    let bottom = height - if frame.x_label.is_empty() { 20.0 } else { 34.0 };
    for &tick in &y.ticks {
        let at = y.place(tick, bottom, top);
        let class = if tick == 0.0 { "zero" } else { "grid" };
        let _ = write!(out, r#"<path class="{class}" d="M{left} {at:.1}H{right}"/>"#);
        let _ = write!(out, r#"<text x="{:.1}" y="{:.1}" class="end">{}</text>"#, left - 6.0, at + 3.5, y.text(tick));
    }
    let _ = write!(out, r#"<path class="axis" d="M{left} {bottom}H{right}"/>"#);
    for &tick in &x.ticks {
        let at = x.place(tick, left + x_inset, right - x_inset);
        let _ = write!(out, r#"<path class="axis" d="M{at:.1} {bottom}v4"/>"#);
        let _ = write!(out, r#"<text x="{at:.1}" y="{:.1}" class="middle">{}</text>"#, bottom + 15.0, x.text(tick));
    }
    if !frame.x_label.is_empty() {
        let (at, base) = ((left + right) / 2.0, height - 4.0);
        let _ = write!(out, r#"<text x="{at:.1}" y="{base:.1}" class="middle muted">{}</text>"#, escape(frame.x_label));
    }
    for (value, text) in frame.limits {
        let at = y.place(*value, bottom, top);
        let _ = write!(out, r#"<path class="limit" d="M{left} {at:.1}H{right}"/>"#);
        let _ = write!(out, r#"<text x="{right}" y="{:.1}" class="end muted">{}</text>"#, at - 4.0, escape(text));
    }
    (left, right, top, bottom)
}

/// Lines over whole-numbered x. None when there is nothing to draw.
pub fn lines(label: &str, frame: &Frame, series: &[Series]) -> Option<String> {
    let drawn = || series.iter().flat_map(|s| s.points.iter().filter(|p| p.1.is_finite()));
    let x = Axis::new(drawn().map(|p| p.0), (frame.size.0 / 70.0).floor(), true, false)?;
    let limits = frame.limits.iter().map(|l| l.0);
    let values = drawn().map(|p| p.1).chain(frame.include.iter().copied()).chain(limits);
    let y = Axis::new(values, (frame.size.1 / 36.0).floor(), false, true)?;
    let mut out = open(frame.size.0, frame.size.1, label);
    let (left, right, top, bottom) = axes(&mut out, frame, &x, &y, 0.0);
    for line in series {
        let at = |p: &(f64, f64)| (x.place(p.0, left, right), y.place(p.1, bottom, top));
        let mut path = String::new();
        for run in line.points.split(|p| !p.1.is_finite()).filter(|run| !run.is_empty()) {
            for (i, point) in run.iter().enumerate() {
                let (px, py) = at(point);
                let _ = write!(path, "{}{px:.1} {py:.1}", if i == 0 { 'M' } else { 'L' });
            }
        }
        let _ = write!(out, r#"<path class="line c{}" d="{path}"/>"#, line.colour);
        let few = line.points.len() <= 120;
        for point in line.points.iter().filter(|p| few && p.1.is_finite()) {
            let (px, py) = at(point);
            let _ = write!(
                out,
                r#"<circle class="c{}" cx="{px:.1}" cy="{py:.1}" r="2"><title>{} at {}: {}</title></circle>"#,
                line.colour,
                escape(line.name),
                number(point.0),
                number(point.1)
            );
        }
    }
    Some(out + "</svg>")
}

/// Columns over whole-numbered x, each a stack of layers from the bottom up. None when there is nothing to draw.
pub fn stacked(label: &str, frame: &Frame, xs: &[f64], layers: &[Layer]) -> Option<String> {
    let x = Axis::new(xs.iter().copied(), (frame.size.0 / 70.0).floor(), true, false)?;
    let height = |layer: &Layer, i: usize| layer.heights.get(i).copied().filter(|h| h.is_finite()).unwrap_or(0.0);
    let sums = (0..xs.len()).map(|i| layers.iter().map(|l| height(l, i)).sum());
    let y = Axis::new(sums.chain([0.0]).chain(frame.include.iter().copied()), 5.0, false, true)?;
    let mut out = open(frame.size.0, frame.size.1, label);
    let spacing = (frame.size.0 - LEFT - RIGHT) / (x.high - x.low + 1.0);
    let (left, right, top, bottom) = axes(&mut out, frame, &x, &y, spacing / 2.0);
    let wide = if spacing > 4.0 { spacing - 1.0 } else { spacing };
    let mut base = vec![0.0; xs.len()];
    for layer in layers {
        let _ = write!(out, r#"<g class="c{}">"#, layer.colour);
        for (i, &step) in xs.iter().enumerate().filter(|(i, _)| height(layer, *i) > 0.0) {
            let h = height(layer, i);
            let (from, to) = (y.place(base[i], bottom, top), y.place(base[i] + h, bottom, top));
            base[i] += h;
            let at = x.place(step, left + spacing / 2.0, right - spacing / 2.0) - wide / 2.0;
            let _ = write!(
                out,
                r#"<rect x="{at:.1}" y="{to:.1}" width="{wide:.1}" height="{:.1}"><title>{} at {}: {}</title></rect>"#,
                from - to,
                escape(layer.name),
                number(step),
                number(h)
            );
        }
        out += "</g>";
    }
    Some(out + "</svg>")
}

/// Rows of dots with intervals on one common axis, which also covers 0, 1 and `include`; the dots of a row stand below
/// each other. `size` is (width of the whole, width of the names at its left). None when there is nothing to draw.
pub fn dots(
    label: &str,
    size: (f64, f64),
    x_label: &str,
    include: &[f64],
    rows: &[(String, Vec<Dot>)],
) -> Option<String> {
    const PITCH: f64 = 10.0;
    let (width, left) = size;
    let ends = |d: &Dot| d.interval.map_or([d.value; 2], |(low, high)| [low, high]).into_iter().chain([d.value]);
    let all = rows.iter().flat_map(|(_, dots)| dots.iter().flat_map(ends)).chain(include.iter().copied());
    rows.iter().find(|(_, dots)| !dots.is_empty())?;
    let x = Axis::new(all.chain([0.0, 1.0]), 7.0, false, true)?;
    let heights: Vec<f64> = rows.iter().map(|(_, dots)| dots.len().max(1) as f64 * PITCH + 10.0).collect();
    let (right, bottom) = (width - RIGHT, heights.iter().sum::<f64>() + 4.0);
    let mut out = open(width, bottom + 34.0, label);
    for &tick in &x.ticks {
        let at = x.place(tick, left, right);
        let class = if tick == 0.0 || tick == 1.0 { "zero" } else { "grid" };
        let _ = write!(out, r#"<path class="{class}" d="M{at:.1} 2V{bottom:.1}"/>"#);
        let _ = write!(out, r#"<text x="{at:.1}" y="{:.1}" class="middle">{}</text>"#, bottom + 14.0, x.text(tick));
    }
    let (middle, base) = ((left + right) / 2.0, bottom + 30.0);
    let _ = write!(out, r#"<text x="{middle:.1}" y="{base:.1}" class="middle muted">{}</text>"#, escape(x_label));
    let mut top = 4.0;
    for ((name, dots), height) in rows.iter().zip(heights) {
        let y = top + height / 2.0 + 3.5;
        let _ = write!(out, r#"<text x="{:.1}" y="{y:.1}" class="end">{}</text>"#, left - 8.0, escape(name));
        for (i, dot) in dots.iter().enumerate().filter(|(_, d)| d.value.is_finite()) {
            let (at, y) = (x.place(dot.value, left, right), top + 5.0 + (i as f64 + 0.5) * PITCH);
            let mut tooltip = format!("{} {}: {}", name, dot.name, number(dot.value));
            let _ = write!(out, r#"<g class="c{}">"#, dot.colour);
            if let Some((low, high)) = dot.interval {
                let (from, to) = (x.place(low, left, right), x.place(high, left, right));
                let _ = write!(out, r#"<path class="line" d="M{from:.1} {y:.1}H{to:.1}"/>"#);
                let _ = write!(tooltip, " [{}, {}]", number(low), number(high));
            }
            let tooltip = escape(&tooltip);
            let _ = write!(out, r#"<circle cx="{at:.1}" cy="{y:.1}" r="3.6"><title>{tooltip}</title></circle></g>"#);
        }
        top += height;
    }
    Some(out + "</svg>")
}

/// One horizontal bar cut into parts: (name, colour class, size). None when all parts are empty.
pub fn bar(label: &str, width: f64, parts: &[(String, usize, f64)]) -> Option<String> {
    let total: f64 = parts.iter().map(|p| p.2.max(0.0)).filter(|s| s.is_finite()).sum();
    if total <= 0.0 {
        return None;
    }
    let mut out = open(width, 26.0, label);
    let mut at = 0.0;
    for (name, colour, size) in parts.iter().filter(|p| p.2 > 0.0 && p.2.is_finite()) {
        let wide = size / total * width;
        let _ = write!(
            out,
            r#"<rect class="c{colour}" x="{at:.1}" y="2" width="{:.1}" height="22"><title>{}: {}</title></rect>"#,
            (wide - 1.0).max(0.3),
            escape(name),
            number(*size)
        );
        at += wide;
    }
    Some(out + "</svg>")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_cover_the_data() {
        let check = |values: &[f64], whole: bool, expected: &[&str]| {
            let axis = Axis::new(values.iter().copied(), 5.0, whole, true).unwrap();
            assert_eq!(axis.ticks.iter().map(|&t| axis.text(t)).collect::<Vec<_>>(), expected);
        };
        check(&[0.0, 1.0], false, &["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        check(&[-0.31, 0.12, f64::NAN], false, &["−0.4", "−0.3", "−0.2", "−0.1", "0.0", "0.1", "0.2"]);
        check(&[1.0, 3.0], true, &["1", "2", "3"]);
        check(&[12000.0, 14000.0], false, &["12000", "12500", "13000", "13500", "14000"]);
        check(&[5.0], true, &["4", "5", "6"]);
        check(&[0.0, 0.0], false, &["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        assert!(Axis::new([f64::NAN].into_iter(), 5.0, false, true).is_none());
    }

    #[test]
    fn a_line_is_placed_on_its_axes_and_broken_at_gaps() {
        let frame = Frame { size: (158.0, 108.0), x_label: "", include: &[], limits: &[] };
        let points = vec![(0.0, 0.0), (1.0, f64::NAN), (2.0, 0.5), (4.0, 1.0)];
        let svg = lines("a<b", &frame, &[Series { name: "x&y", colour: 3, points }]).unwrap();
        // x runs over 46..146 for 0..4, y over 88..8 for 0..1.
        assert!(svg.contains(r#"<path class="line c3" d="M46.0 88.0M96.0 48.0L146.0 8.0"/>"#), "{svg}");
        assert_eq!(svg.matches("<circle").count(), 3);
        assert!(svg.contains("a&lt;b") && svg.contains("x&amp;y at 2: 0.5"));
        assert!(lines("", &frame, &[Series { name: "", colour: 0, points: vec![(0.0, f64::NAN)] }]).is_none());
    }

    #[test]
    fn columns_stack_to_their_sum() {
        let frame = Frame { size: (158.0, 108.0), x_label: "", include: &[1.0], limits: &[] };
        let layer = |name, heights: &[f64]| Layer { name, colour: 0, heights: heights.to_vec() };
        let svg = stacked("", &frame, &[1.0, 2.0], &[layer("a", &[0.25, 1.0]), layer("b", &[0.75, 0.0])]).unwrap();
        let first = (svg.find(r#"y="68.0" width="49.0" height="20.0"><title>a at 1: 0.25"#), svg.find("b at 1: 0.75"));
        assert!(first.0.is_some() && first.1.is_some(), "{svg}");
        assert!(svg.contains(r#"y="8.0" width="49.0" height="60.0"><title>b at 1"#), "{svg}");
        assert!(!svg.contains("b at 2"), "an empty layer is not drawn");
        assert!(stacked("", &frame, &[], &[]).is_none());
    }

    #[test]
    fn dots_and_bars_lie_where_they_should() {
        let dot = Dot { colour: 1, name: "rl".into(), value: 0.5, interval: Some((0.25, 1.0)) };
        let svg = dots("", (212.0, 100.0), "score", &[], &[("held-in".into(), vec![dot])]).unwrap();
        assert!(svg.contains(r#"d="M125.0 14.0H200.0"/>"#) && svg.contains(r#"cx="150.0""#), "{svg}");
        assert!(dots("", (212.0, 100.0), "", &[], &[("x".into(), vec![])]).is_none());
        let parts = [("a".to_string(), 0, 1.0), ("b".to_string(), 1, 3.0), ("c".to_string(), 2, f64::NAN)];
        let svg = bar("", 100.0, &parts).unwrap();
        assert!(
            svg.contains(r#"x="0.0" y="2" width="24.0""#) && svg.contains(r#"x="25.0" y="2" width="74.0""#),
            "{svg}"
        );
        assert!(bar("", 100.0, &parts[2..]).is_none());
    }
}
