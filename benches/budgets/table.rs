use std::process::ExitCode;

/// Prints figures as they are measured and remembers which budgets they exceeded.
#[derive(Default)]
pub(crate) struct Table {
    exceeded: Vec<String>,
}

impl Table {
    pub(crate) fn section(&self, title: &str) {
        println!("\n{title}\n");
    }

    /// Adds a figure that must not exceed its budget.
    pub(crate) fn row(&mut self, name: &str, figure: f64, budget: f64, details: &str) {
        let holds = figure <= budget;
        if !holds {
            self.exceeded.push(name.to_owned());
        }
        let verdict = if holds { "ok" } else { "BROKEN" };
        let (figure, budget) = (number(figure), number(budget));
        println!("{name:<44} {figure:>7}   budget {budget:>6}   {verdict:<6} {details}");
    }

    /// Adds a figure without a budget.
    pub(crate) fn report(&self, name: &str, figure: f64, details: &str) {
        println!("{name:<44} {figure:>7.0}   {details}");
    }

    pub(crate) fn fail(&mut self, reason: &str) {
        println!("\n{reason}");
        self.exceeded.push(reason.to_owned());
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        println!();
        for name in &self.exceeded {
            eprintln!("BROKEN: {name}");
        }
        if self.exceeded.is_empty() {
            println!("All budgets hold.");
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}

/// Formats integers without decimals and ratios with three.
fn number(figure: f64) -> String {
    let digits = if figure.fract() == 0.0 { 0 } else { 3 };
    format!("{figure:.digits$}")
}
