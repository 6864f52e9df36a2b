//! What the example prints, and what it checks on the way.

use std::fmt::Display;

use tower_client_credentials::BoxError;

/// Prints an empty line.
pub(crate) fn gap() {
    println!();
}

/// Prints what was seen.
pub(crate) fn note(label: &str, seen: impl Display) {
    print("", label, seen);
}

/// Prints what was seen, and fails if it is not what was promised.
pub(crate) fn check<T, P>(label: &str, seen: T, promised: P) -> Result<(), BoxError>
where
    T: PartialEq<P> + Display,
    P: Display,
{
    let holds = seen == promised;
    check_that(label, seen, holds, promised)
}

/// Prints what was seen, and fails if the promise does not hold.
pub(crate) fn check_that(
    label: &str,
    seen: impl Display,
    holds: bool,
    promised: impl Display,
) -> Result<(), BoxError> {
    print(if holds { "ok" } else { "!!" }, label, &seen);
    if holds {
        return Ok(());
    }
    Err(format!("{label}: {seen}, but it should be {promised}").into())
}

fn print(mark: &str, label: &str, seen: impl Display) {
    let mut lines = wrapped(&seen.to_string()).into_iter();
    println!(
        "   {mark:2}  {label:<34} {}",
        lines.next().unwrap_or_default()
    );
    for line in lines {
        println!("   {:2}  {:<34} {line}", "", "");
    }
}

/// Breaks a text into lines that fit beside the labels.
fn wrapped(text: &str) -> Vec<String> {
    const WIDTH: usize = 60;
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + word.len() < WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}
