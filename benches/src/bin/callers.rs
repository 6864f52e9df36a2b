//! Makes calls on one stack as programs do, for callgrind to count their instructions: `callers CALLER
//! STACK HEADERS CALLS`. The bench `budgets` runs it.
//!
//! A program of its own: a service that is called from several places is compiled otherwise.

use std::{env, process::exit};

use benches::{Api, BoxedAnswer, Stacks, repeat_async, repeat_cloned};
use tower::BoxError;

fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [caller, stack, headers, calls] = &arguments[..] else {
        eprintln!("usage: callers CALLER STACK HEADERS CALLS");
        exit(2);
    };
    let (headers, calls) = (headers.parse()?, calls.parse()?);
    let stacks = Stacks::new()?;
    match stack.as_str() {
        "leaf" => run(caller, stacks.leaf::<BoxedAnswer>(), headers, calls),
        "add_authorization" => {
            let stack = stacks.add_authorization::<BoxedAnswer>();
            run(caller, stack, headers, calls)
        }
        "never" => run(caller, stacks.never::<BoxedAnswer>(), headers, calls),
        _ => Err(format!("no stack is called {stack}").into()),
    }
}

fn run<S: Api + Clone>(
    caller: &str,
    mut service: S,
    headers: usize,
    calls: u64,
) -> Result<(), BoxError> {
    match caller {
        "async" => repeat_async(&mut service, headers, calls),
        "cloned" => repeat_cloned(&service, headers, calls),
        _ => return Err(format!("no caller is called {caller}").into()),
    }
    Ok(())
}
