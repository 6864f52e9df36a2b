use std::process::ExitCode;

/// What was measured so far, printed as it comes.
#[derive(Default)]
pub(crate) struct Table {
    broken: Vec<String>,
    over_budget: Vec<String>,
}

/// What a figure must not exceed.
pub(crate) struct Limit {
    pub(crate) budget: f64,
    /// Where the budget is known to be missed: what the figure must not exceed all the same, so that
    /// it does not get worse unnoticed.
    pub(crate) ceiling: Option<f64>,
}

impl Table {
    pub(crate) fn part(&self, title: &str) {
        println!("\n{title}\n");
    }

    /// A figure beside its budget, which it must not exceed.
    pub(crate) fn row(&mut self, what: &str, figure: f64, budget: f64, details: &str) {
        let ceiling = None;
        self.held_row(what, figure, &Limit { budget, ceiling }, details);
    }

    /// A figure beside its budget, and beside its ceiling where the budget is known to be missed.
    pub(crate) fn held_row(&mut self, what: &str, figure: f64, limit: &Limit, details: &str) {
        let verdict = if figure <= limit.budget {
            "ok".to_owned()
        } else {
            match limit.ceiling {
                Some(ceiling) if figure <= ceiling => {
                    self.over_budget.push(what.to_owned());
                    format!("over budget, held at {}", number(ceiling))
                }
                _ => {
                    self.broken.push(what.to_owned());
                    "BROKEN".to_owned()
                }
            }
        };
        let (figure, budget) = (number(figure), number(limit.budget));
        println!("{what:<44} {figure:>7}   budget {budget:>6}   {verdict:<25} {details}");
    }

    pub(crate) fn cannot_measure(&mut self, what: &str) {
        println!("\n{what}");
        self.broken.push(what.to_owned());
    }

    pub(crate) fn verdict(&self) -> ExitCode {
        println!();
        for what in &self.over_budget {
            println!("over budget, no worse than recorded: {what}");
        }
        for what in &self.broken {
            eprintln!("BROKEN: {what}");
        }
        if self.broken.is_empty() {
            println!("No budget is broken that held before.");
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
