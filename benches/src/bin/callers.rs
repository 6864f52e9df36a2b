//! Makes calls in a style that programs use, on a stack that sends each request once, so that
//! callgrind can count their instructions: `callers STYLE STACK HEADERS CALLS`. The bench `budgets`
//! runs it.
//!
//! Each of these programs has few stacks and call sites: the compiler inlines less where there are
//! more.

use std::{env, process::exit};

use benches::{BoxedFuture, Stacks, repeat_in_style};
use tower::BoxError;

fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [style, stack, headers, calls] = &arguments[..] else {
        eprintln!("usage: callers STYLE STACK HEADERS CALLS");
        exit(2);
    };
    let (headers, calls) = (headers.parse()?, calls.parse()?);
    let stacks = Stacks::new()?;
    match stack.as_str() {
        "leaf" => repeat_in_style(style, stacks.leaf::<BoxedFuture>(), headers, calls),
        "add_authorization" => {
            let stack = stacks.add_authorization::<BoxedFuture>();
            repeat_in_style(style, stack, headers, calls)
        }
        "no_replay" => repeat_in_style(style, stacks.no_replay::<BoxedFuture>(), headers, calls),
        _ => Err(format!("no stack is called {stack}").into()),
    }
}
