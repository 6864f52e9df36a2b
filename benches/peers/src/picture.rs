//! A bar chart of the token requests of this crate and its peers.

use std::path::Path;

use plotters::{
    coord::Shift,
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use tower::BoxError;

use crate::{
    candidate::Candidate,
    report::{Results, thousands},
    scenario::{Outcome, PATIENCE, SLOW, SPREAD, Scenario, Unsupported},
};

const SIZE: (u32, u32) = (960, 452);

const OURS: RGBColor = RGBColor(31, 119, 180);
const PEERS: RGBColor = RGBColor(214, 96, 20);
const GREY: RGBColor = RGBColor(110, 110, 110);

/// The right edge of the names, and the distance between columns.
const NAMES: i32 = 172;
const COLUMN: i32 = 158;

/// The position of the first row, and the distance between rows.
const TOP: i32 = 128;
const ROW: i32 = 29;

/// The same in all columns, so that bars can be compared across columns.
const PIXELS_PER_REQUEST: f64 = 1.8;

type Page<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub(crate) fn draw(path: &Path, results: &Results) -> Result<(), BoxError> {
    let page = SVGBackend::new(path, SIZE).into_drawing_area();
    // Pages may have a dark theme.
    page.fill(&WHITE)?;
    let middle = (SIZE.0 as i32 / 2, 14);
    let title = "Token requests in the same situations: this crate and its peers";
    write(&page, title, middle, 21, HPos::Center, BLACK)?;

    let rows = rows(results);
    for (index, row) in rows.iter().enumerate() {
        let (name, colour) = match results.candidates[*row] {
            Candidate { ours: true, .. } => ("this crate", OURS),
            Candidate { name, .. } => (name, BLACK),
        };
        let at = (NAMES - 14, line(index));
        write(&page, name, at, 14, HPos::Right, colour)?;
    }
    for (scenario, outcomes) in Scenario::ALL.into_iter().zip(&results.outcomes) {
        let left = NAMES + COLUMN * scenario as i32;
        draw_heading(&page, scenario, left)?;
        draw_axis(&page, left, rows.len())?;
        for (index, row) in rows.iter().enumerate() {
            let ours = results.candidates[*row].ours;
            draw_outcome(&page, scenario, &outcomes[*row], ours, (left, line(index)))?;
        }
    }
    let note = "\u{2013}  not measured: never without a token, or no handling of rejected tokens";
    let below = (NAMES, line(rows.len()) + 8);
    write(&page, note, below, 13, HPos::Left, GREY)?;
    page.present()?;
    Ok(())
}

/// Returns the places of this crate with all defaults, then of the peers.
fn rows(results: &Results) -> Vec<usize> {
    let own = results.counterpart(true);
    let peers = results.candidates.iter().enumerate();
    let peers = peers.filter_map(|(index, it)| (!it.ours).then_some(index));
    [own].into_iter().chain(peers).collect()
}

fn line(index: usize) -> i32 {
    TOP + ROW * index as i32
}

fn draw_heading(page: &Page<'_>, scenario: Scenario, left: i32) -> Result<(), BoxError> {
    let callers = thousands(scenario.callers());
    let [patience, slow, spread] = [PATIENCE, SLOW, SPREAD].map(|time| time.as_millis());
    let lines = match scenario {
        Scenario::Stampede => [
            format!("{callers} concurrent"),
            "callers, no token yet".to_owned(),
        ],
        Scenario::Impatience => [
            format!("{callers} callers give up after"),
            format!("{patience} ms; a token takes {slow}"),
        ],
        Scenario::Outage => [
            format!("{callers} concurrent callers;"),
            "the endpoint sends 503".to_owned(),
        ],
        Scenario::Storm => [
            format!("{callers} calls get a 401"),
            "at the same moment".to_owned(),
        ],
        Scenario::LongStorm => [
            format!("{callers} calls get a 401"),
            format!("within {spread} ms"),
        ],
    };
    write(page, scenario.name(), (left, 58), 16, HPos::Left, BLACK)?;
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

fn draw_outcome(
    page: &Page<'_>,
    scenario: Scenario,
    outcome: &Result<Outcome, Unsupported>,
    ours: bool,
    (left, middle): (i32, i32),
) -> Result<(), BoxError> {
    let Ok(outcome) = outcome else {
        return write(page, "\u{2013}", (left + 8, middle), 14, HPos::Left, GREY);
    };
    let colour = if ours { OURS } else { PEERS };
    let right = left + (outcome.token_requests as f64 * PIXELS_PER_REQUEST).ceil() as i32;
    let bar = [(left, middle - 9), (right, middle + 9)];
    page.draw(&Rectangle::new(bar, colour.filled()))?;

    let mut text = outcome.token_requests.to_string();
    // In an outage no caller can be served.
    if outcome.served < outcome.callers && scenario != Scenario::Outage {
        text += &match outcome.served {
            0 => ", none served".to_owned(),
            served => format!(", {} served", thousands(served)),
        };
    }
    write(page, &text, (right + 6, middle), 14, HPos::Left, BLACK)
}

/// Writes a line of text that is vertically centred on a point.
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
