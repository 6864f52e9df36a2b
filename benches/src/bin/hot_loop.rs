//! Makes calls on one stack, for callgrind to count their instructions: `hot_loop STACK LEAF HEADERS
//! CALLS`. The bench `budgets` runs it.

use std::{env, future::Ready, process::exit};

use benches::{Answer, ApiResponse, BoxedAnswer, OpaqueAnswer, Stacks, repeat};
use tower::BoxError;

fn main() -> Result<(), BoxError> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [stack, leaf, headers, calls] = &arguments[..] else {
        eprintln!("usage: hot_loop STACK LEAF HEADERS CALLS");
        exit(2);
    };
    let (headers, calls) = (headers.parse()?, calls.parse()?);
    match leaf.as_str() {
        "inlined" => run::<Ready<Result<ApiResponse, BoxError>>>(stack, headers, calls),
        "boxed" => run::<BoxedAnswer>(stack, headers, calls),
        "opaque" => run::<OpaqueAnswer>(stack, headers, calls),
        _ => Err(format!("no leaf is called {leaf}").into()),
    }
}

fn run<F: Answer>(stack: &str, headers: usize, calls: u64) -> Result<(), BoxError> {
    let stacks = Stacks::new()?;
    match stack {
        "leaf" => repeat(&mut stacks.leaf::<F>(), headers, calls),
        "add_authorization" => repeat(&mut stacks.add_authorization::<F>(), headers, calls),
        "retry" => repeat(&mut stacks.retry::<F>(), headers, calls),
        "never" => repeat(&mut stacks.never::<F>(), headers, calls),
        "watchful" => repeat(&mut stacks.watchful::<F>(), headers, calls),
        "clone_body" => repeat(&mut stacks.clone_body::<F>(), headers, calls),
        _ => return Err(format!("no stack is called {stack}").into()),
    }
    Ok(())
}
