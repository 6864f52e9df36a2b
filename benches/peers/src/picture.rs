//! Token requests of this crate and of its peers, as bars with their numbers.

use std::path::Path;

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use tower::BoxError;

use crate::{
    contest::Contestant,
    crowd::{Cannot, PATIENCE, SLOW, SPREAD, Tally, Work},
    report::{Results, thousands},
};

const SIZE: (u32, u32) = (960, 452);

const OURS: RGBColor = RGBColor(31, 119, 180);
const PEERS: RGBColor = RGBColor(214, 96, 20);
const GREY: RGBColor = RGBColor(110, 110, 110);

/// Where the names end, and how far it is from one column to the next.
const NAMES: i32 = 172;
const COLUMN: i32 = 158;

/// Where the first row is, and how far it is to the next.
const TOP: i32 = 128;
const ROW: i32 = 29;

/// The same for all columns, so that bars can be compared across them.
const PIXELS_PER_REQUEST: f64 = 1.8;

type Page<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub(crate) fn draw(path: &Path, results: &Results) -> Result<(), BoxError> {
    let page = SVGBackend::new(path, SIZE).into_drawing_area();
    // Pages may be dark.
    page.fill(&WHITE)?;
    let middle = (SIZE.0 as i32 / 2, 14);
    let title = "Token requests for the same work: this crate and its peers";
    write(&page, title, middle, 21, HPos::Center, BLACK)?;

    let rows = rows(results);
    for (index, row) in rows.iter().enumerate() {
        let (name, colour) = match results.contestants[*row] {
            Contestant { ours: true, .. } => ("this crate", OURS),
            Contestant { name, .. } => (name, BLACK),
        };
        let at = (NAMES - 14, line(index));
        write(&page, name, at, 14, HPos::Right, colour)?;
    }
    for (work, tallies) in Work::ALL.into_iter().zip(&results.crowds) {
        let left = NAMES + COLUMN * work as i32;
        draw_heading(&page, work, left)?;
        draw_axis(&page, left, rows.len())?;
        for (index, row) in rows.iter().enumerate() {
            let ours = results.contestants[*row].ours;
            draw_tally(&page, work, &tallies[*row], ours, (left, line(index)))?;
        }
    }
    let note = "\u{2013}  takes no part: it has no such state, or no such notion";
    let below = (NAMES, line(rows.len()) + 8);
    write(&page, note, below, 13, HPos::Left, GREY)?;
    page.present()?;
    Ok(())
}

/// This crate with all defaults, then the peers.
fn rows(results: &Results) -> Vec<usize> {
    let own = results.counterpart(true);
    let peers = results.contestants.iter().enumerate();
    let peers = peers.filter_map(|(index, one)| (!one.ours).then_some(index));
    [own].into_iter().chain(peers).collect()
}

fn line(index: usize) -> i32 {
    TOP + ROW * index as i32
}

fn draw_heading(page: &Page<'_>, work: Work, left: i32) -> Result<(), BoxError> {
    let callers = thousands(work.callers());
    let [patience, slow, spread] = [PATIENCE, SLOW, SPREAD].map(|time| time.as_millis());
    let lines = match work {
        Work::Stampede => [
            format!("{callers} callers at once,"),
            "no token yet".to_owned(),
        ],
        Work::Impatience => [
            format!("{callers} callers give up after"),
            format!("{patience} ms; a token takes {slow}"),
        ],
        Work::Outage => [
            format!("{callers} callers at once; the"),
            "endpoint answers 503".to_owned(),
        ],
        Work::Storm => [
            format!("{callers} calls answered"),
            "401 at once".to_owned(),
        ],
        Work::LongStorm => [
            format!("{callers} calls answered"),
            format!("401 within {spread} ms"),
        ],
    };
    write(page, work.name(), (left, 58), 16, HPos::Left, BLACK)?;
    for (index, text) in lines.into_iter().enumerate() {
        let at = (left, 78 + 16 * index as i32);
        write(page, &text, at, 13, HPos::Left, GREY)?;
    }
    Ok(())
}

fn draw_axis(page: &Page<'_>, left: i32, rows: usize) -> Result<(), BoxError> {
    let ends = [(left, TOP - ROW / 2), (left, line(rows) - ROW / 2)];
    page.draw(&PathElement::new(ends, BLACK.mix(0.3)))?;
    Ok(())
}

fn draw_tally(
    page: &Page<'_>,
    work: Work,
    tally: &Result<Tally, Cannot>,
    ours: bool,
    (left, middle): (i32, i32),
) -> Result<(), BoxError> {
    let Ok(tally) = tally else {
        return write(page, "\u{2013}", (left + 8, middle), 14, HPos::Left, GREY);
    };
    let colour = if ours { OURS } else { PEERS };
    let right = left + (tally.token_requests as f64 * PIXELS_PER_REQUEST).ceil() as i32;
    let bar = [(left, middle - 9), (right, middle + 9)];
    page.draw(&Rectangle::new(bar, colour.filled()))?;

    let mut text = tally.token_requests.to_string();
    // Nobody can be served in an outage.
    if tally.served < tally.callers && work != Work::Outage {
        text += &match tally.served {
            0 => ", none served".to_owned(),
            served => format!(", {} served", thousands(served)),
        };
    }
    write(page, &text, (right + 6, middle), 14, HPos::Left, BLACK)
}

/// Writes a line beside or around a point, at half its height.
fn write(
    page: &Page<'_>,
    text: &str,
    at: (i32, i32),
    size: i32,
    side: HPos,
    colour: RGBColor,
) -> Result<(), BoxError> {
    let style = TextStyle::from(("sans-serif", size).into_font())
        .pos(Pos::new(side, VPos::Center))
        .color(&colour);
    page.draw_text(text, &style, at)?;
    Ok(())
}
