//! A picture of both days: the busiest second of every few minutes, and the rate limit.

use std::{fs, ops::Range, path::Path};

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use tower::BoxError;

use crate::{
    day::{Day, Load},
    endpoint::LIMIT,
    report::thousands,
};

const SIZE: (u32, u32) = (900, 560);

/// In seconds. Short enough to show the waves, which occur twice an hour.
const BUCKET: usize = 3 * 60;

/// The visible part of the axis. The start is a hundred times as high.
const VISIBLE: Range<f64> = 0.0..350.0;

const JITTERED: RGBColor = RGBColor(31, 119, 180);
const IN_STEP: RGBColor = RGBColor(214, 96, 20);

type Panel<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub(crate) fn draw(path: &Path, jittered: &Day, in_step: &Day) -> Result<(), BoxError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    let page = SVGBackend::new(path, SIZE).into_drawing_area();
    // Pages may have a dark theme.
    page.fill(&WHITE)?;
    let (title, page) = page.split_vertically(34);
    let words = "Token requests of 10,000 processes: busiest second in every 3 minutes";
    let style = TextStyle::from(("sans-serif", 21)).pos(Pos::new(HPos::Center, VPos::Top));
    title.draw_text(words, &style, (SIZE.0 as i32 / 2, 12))?;

    let panels = page.split_evenly((2, 1));
    draw_day(&panels[0], "without jitter", IN_STEP, in_step)?;
    draw_day(&panels[1], "with jitter (the default)", JITTERED, jittered)?;
    page.present()?;
    Ok(())
}

fn draw_day(panel: &Panel<'_>, name: &str, colour: RGBColor, day: &Day) -> Result<(), BoxError> {
    let mut chart = ChartBuilder::on(panel)
        .margin(10)
        .margin_right(24)
        .x_label_area_size(40)
        .y_label_area_size(58)
        .build_cartesian_2d(0.0..24.0, VISIBLE)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .light_line_style(TRANSPARENT)
        .x_labels(13)
        .y_labels(8)
        .x_label_formatter(&|hour| format!("{hour:.0}"))
        .y_label_formatter(&|requests| format!("{requests:.0}"))
        .x_desc("hours since the start")
        .y_desc("requests per second")
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 15))
        .draw()?;

    let peaks = AreaSeries::new(peaks(day), 0.0, colour.mix(0.3)).border_style(colour);
    chart
        .draw_series(peaks)?
        .label(name)
        .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 18, y + 5)], colour.filled()));
    let limit = f64::from(LIMIT);
    chart
        .draw_series(LineSeries::new(
            [(0.0, limit), (24.0, limit)],
            BLACK.stroke_width(2),
        ))?
        .label(format!("rate limit: {LIMIT} per second"))
        .legend(|(x, y)| PathElement::new([(x, y), (x + 18, y)], BLACK.stroke_width(2)));

    let peak = thousands(day.start().peak);
    let start = format!("← at the start: {peak} per second");
    let style = TextStyle::from(("sans-serif", 14)).pos(Pos::new(HPos::Left, VPos::Center));
    chart.draw_series([Text::new(start, (0.15, 335.0), style)])?;
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE)
        .border_style(BLACK.mix(0.3))
        .label_font(("sans-serif", 15))
        .draw()?;
    Ok(())
}

/// Returns hours since the start and requests in the busiest second of each bucket.
fn peaks(day: &Day) -> impl Iterator<Item = (f64, f64)> {
    day.seconds
        .chunks(BUCKET)
        .enumerate()
        .map(|(bucket, seconds)| {
            let hour = (bucket * BUCKET) as f64 / 3600.0;
            (hour, f64::from(Load::of(seconds).peak).min(VISIBLE.end))
        })
}
