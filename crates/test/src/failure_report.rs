use std::{fmt, thread};

/// Prints what the servers saw if a test panics.
///
/// [`AuthServer::report_on_failure`](crate::AuthServer::report_on_failure) and
/// [`Api::report_on_failure`](crate::Api::report_on_failure) create one. It prints to the standard
/// error output when it is dropped during a panic, and does nothing otherwise. A test that returns an
/// error doesn't panic, so nothing is printed: end the calls of such a test with `unwrap` or `expect`
/// instead of `?`.
#[must_use = "the report is printed when this value is dropped during a panic"]
pub struct FailureReport(Box<dyn Fn() -> String + Send + Sync>);

impl FailureReport {
    pub(crate) fn new(describe: impl Fn() -> String + Send + Sync + 'static) -> Self {
        Self(Box::new(describe))
    }
}

impl Drop for FailureReport {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("{}", (self.0)());
        }
    }
}

impl fmt::Debug for FailureReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FailureReport").finish_non_exhaustive()
    }
}
