//! Printing and checking results.

use std::fmt::Display;

use tower_client_credentials::BoxError;

/// Prints an empty line.
pub(crate) fn gap() {
    println!();
}

/// Prints a value.
pub(crate) fn note(label: &str, value: impl Display) {
    print("", label, value);
}

/// Prints a value and fails if it is not the expected one.
pub(crate) fn check<T, E>(label: &str, value: T, expected: E) -> Result<(), BoxError>
where
    T: PartialEq<E> + Display,
    E: Display,
{
    let holds = value == expected;
    check_that(label, value, holds, expected)
}

/// Prints a value and fails if the condition does not hold.
pub(crate) fn check_that(
    label: &str,
    value: impl Display,
    holds: bool,
    expected: impl Display,
) -> Result<(), BoxError> {
    print(if holds { "ok" } else { "!!" }, label, &value);
    if holds {
        return Ok(());
    }
    Err(format!("{label}: {value}, expected {expected}").into())
}

fn print(mark: &str, label: &str, value: impl Display) {
    let mut lines = wrap(&value.to_string()).into_iter();
    println!(
        "   {mark:2}  {label:<34} {}",
        lines.next().unwrap_or_default()
    );
    for line in lines {
        println!("   {:2}  {:<34} {line}", "", "");
    }
}

/// Breaks a text into lines that fit next to the labels.
fn wrap(text: &str) -> Vec<String> {
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
