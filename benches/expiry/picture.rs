//! A picture of the latencies around an expiry; 20 expiries are overlaid.

use std::{ops::Range, path::Path};

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use tower::BoxError;

use crate::load::Run;

const SIZE: (u32, u32) = (900, 560);

/// The visible time, in milliseconds since the start of a token request.
const SHOWN: Range<f64> = -100.0..200.0;

/// The width of a bucket in milliseconds.
const BUCKET: f64 = 2.0;

/// The highest visible latency in milliseconds.
const MAX_LATENCY: f64 = 80.0;

const LAYER: RGBColor = RGBColor(31, 119, 180);
const ON_DEMAND: RGBColor = RGBColor(214, 96, 20);

type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub(crate) fn draw(path: &Path, layer: &Run, on_demand: &Run) -> Result<(), BoxError> {
    let page = SVGBackend::new(path, SIZE).into_drawing_area();
    // Pages may have a dark theme.
    page.fill(&WHITE)?;
    let (title, page) = page.split_vertically(34);
    let words = "Latency of calls around 20 token expiries";
    let style = TextStyle::from(("sans-serif", 21)).pos(Pos::new(HPos::Center, VPos::Top));
    title.draw_text(words, &style, (SIZE.0 as i32 / 2, 12))?;

    let panels = page.split_evenly((2, 1));
    draw_run(&panels[0], "token fetched on demand", ON_DEMAND, on_demand)?;
    draw_run(&panels[1], "with the layer", LAYER, layer)?;
    page.present()?;
    Ok(())
}

fn draw_run(panel: &Panel<'_>, name: &str, colour: RGBColor, run: &Run) -> Result<(), BoxError> {
    let mut chart = ChartBuilder::on(panel)
        .margin(10)
        .margin_right(24)
        .x_label_area_size(40)
        .y_label_area_size(58)
        .build_cartesian_2d(SHOWN, 0.0..MAX_LATENCY)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .x_labels(13)
        .y_labels(8)
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .x_desc("milliseconds since the start of the token request")
        .y_desc("latency in milliseconds")
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 15))
        .draw()?;

    let buckets = buckets(run);
    let slowest = buckets
        .iter()
        .map(|(x, slowest, _)| (*x, slowest.min(MAX_LATENCY)));
    let slowest = AreaSeries::new(slowest, 0.0, colour.mix(0.3)).border_style(colour.mix(0.6));
    chart
        .draw_series(slowest)?
        .label(format!("{name}: slowest call"))
        .legend(move |(x, y)| {
            Rectangle::new([(x, y - 5), (x + 18, y + 5)], colour.mix(0.3).filled())
        });
    let medians = buckets.iter().map(|(x, _, median)| (*x, *median));
    chart
        .draw_series(LineSeries::new(medians, colour.stroke_width(3)))?
        .label(format!("{name}: median"))
        .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3)));
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 15))
        .draw()?;
    Ok(())
}

/// The time, the slowest call and the median call of each bucket.
fn buckets(run: &Run) -> Vec<(f64, f64, f64)> {
    let mut buckets = vec![Vec::new(); ((SHOWN.end - SHOWN.start) / BUCKET) as usize];
    for (since, latency) in run.since_expiries() {
        let bucket = ((since - SHOWN.start) / BUCKET).floor();
        if bucket >= 0.0
            && let Some(bucket) = buckets.get_mut(bucket as usize)
        {
            bucket.push(latency);
        }
    }
    let middle = |index: usize| SHOWN.start + (index as f64 + 0.5) * BUCKET;
    buckets
        .iter_mut()
        .enumerate()
        .filter_map(|(index, latencies)| {
            latencies.sort_unstable_by(f64::total_cmp);
            let median = latencies.get(latencies.len() / 2)?;
            Some((middle(index), *latencies.last()?, *median))
        })
        .collect()
}
