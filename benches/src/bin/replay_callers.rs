//! Makes calls in a style that programs use, on a stack that can send requests again, so that
//! callgrind can count their instructions: `replay_callers STYLE STACK HEADERS CALLS`. The bench
//! `budgets` runs it.
//!
//! Each of these programs has few stacks and call sites: the compiler inlines less where there are
//! more.

use std::{env, process::exit};

use benches::{BoxedFuture, Stacks, repeat_in_style};
use tower::BoxError;

fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [style, stack, headers, calls] = &arguments[..] else {
        eprintln!("usage: replay_callers STYLE STACK HEADERS CALLS");
        exit(2);
    };
    let (headers, calls) = (headers.parse()?, calls.parse()?);
    let stacks = Stacks::new()?;
    match stack.as_str() {
        "leaf" => repeat_in_style(style, stacks.leaf::<BoxedFuture>(), headers, calls),
        "retry" => repeat_in_style(style, stacks.retry::<BoxedFuture>(), headers, calls),
        "clone_body" => repeat_in_style(style, stacks.clone_body::<BoxedFuture>(), headers, calls),
        _ => Err(format!("no stack is called {stack}").into()),
    }
}
