use std::process::ExitCode;

/// What was measured so far, printed as it comes.
#[derive(Default)]
pub(crate) struct Table {
    broken: Vec<String>,
}

impl Table {
    pub(crate) fn part(&self, title: &str) {
        println!("\n{title}\n");
    }

    /// A figure beside its budget, which it must not exceed.
    pub(crate) fn row(&mut self, what: &str, figure: f64, budget: f64, details: &str) {
        let is_kept = figure <= budget;
        if !is_kept {
            self.broken.push(what.to_owned());
        }
        let verdict = if is_kept { "ok" } else { "BROKEN" };
        let (figure, budget) = (number(figure), number(budget));
        println!("{what:<44} {figure:>7}   budget {budget:>6}   {verdict:<6} {details}");
    }

    pub(crate) fn cannot_measure(&mut self, what: &str) {
        println!("\n{what}");
        self.broken.push(what.to_owned());
    }

    pub(crate) fn verdict(&self) -> ExitCode {
        println!();
        for what in &self.broken {
            eprintln!("BROKEN: {what}");
        }
        if self.broken.is_empty() {
            println!("No budget is broken.");
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Whole numbers as they are, ratios with three digits.
fn number(figure: f64) -> String {
    let digits = if figure.fract() == 0.0 { 0 } else { 3 };
    format!("{figure:.digits$}")
}
