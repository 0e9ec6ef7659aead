//! Reads just enough of a shell command to know where its program stands.
//!
//! Rule: whatever is not surely one simple command stays as it was written; a shell that waits for
//! the program is only a process more, a wrong `exec` would be another command.

/// Words that a shell carries out itself, or that start something that is no simple command.
const BUILTINS: &str = "! . : [ [[ alias bg bind break builtin caller case cd chdir command compgen complete \
    continue coproc declare dirs disown do done echo elif else enable esac eval exec exit export false fc fg fi for \
    function getopts hash help history if in jobs kill let local logout mapfile popd printf pushd pwd read readarray \
    readonly return select set shift shopt source suspend test then time times trap true type typeset ulimit umask \
    unalias unset until wait while";

const INSTANCE: &str = "{instance}";

/// A single simple command.
#[derive(Debug, PartialEq, Eq)]
pub struct Simple {
    /// Byte of the program's first character.
    pub at: usize,
    /// The program, without quotes.
    pub program: String,
}

/// `exec` put before the program where that is safe.
pub fn with_exec(command: &str) -> String {
    match simple(command) {
        Some(Simple { at, .. }) => format!("{}exec {}", &command[..at], &command[at..]),
        None => command.to_owned(),
    }
}

/// Does the shell become the last program that it is told to start? As far as can be seen.
pub fn ends_in_exec(command: &str) -> bool {
    let last = command.rsplit(['\n', ';', '&', '|']).find(|part| !part.trim().is_empty()).unwrap_or_default();
    last.split_whitespace().find(|word| !word.contains('=')).is_some_and(|word| word == "exec")
}

/// The program of a single simple command; `None` where it is anything else, or not surely one.
pub fn simple(command: &str) -> Option<Simple> {
    let mut words = Words { rest: command.trim_end() };
    let mut found = None;
    while let Some(word) = words.next()? {
        if found.is_some() || word.assignment {
            continue;
        }
        let at = command.trim_end().len() - word.from_end;
        let odd = word.expands || word.redirects || word.text.is_empty();
        if odd || BUILTINS.split_whitespace().any(|builtin| builtin == word.text) {
            return None;
        }
        found = Some(Simple { at, program: word.text });
    }
    found
}

/// One word, as far as it matters here.
#[derive(Default)]
struct Word {
    /// Bytes from its start to the end of the command.
    from_end: usize,
    /// Without quotes.
    text: String,
    /// `NAME=…`
    assignment: bool,
    /// Holds `$` or a wildcard: what it becomes is not known here.
    expands: bool,
    redirects: bool,
}

struct Words<'a> {
    rest: &'a str,
}

impl Words<'_> {
    /// The next word, or no more of them; outer `None`: this is no simple command.
    fn next(&mut self) -> Option<Option<Word>> {
        loop {
            self.rest = self.rest.trim_start_matches([' ', '\t']);
            match self.rest.strip_prefix("\\\n") {
                Some(rest) => self.rest = rest,
                None => break,
            }
        }
        if self.rest.is_empty() {
            return Some(None);
        }
        if self.rest.starts_with('#') {
            // A comment reaches to the end of the line; a further line would be a further command.
            return (!self.rest.contains('\n')).then_some(None);
        }
        let mut word = Word { from_end: self.rest.len(), ..Word::default() };
        let mut quoted = false;
        while let Some(c) = self.rest.chars().next() {
            // A number by the time that a shell reads it.
            if let Some(rest) = self.rest.strip_prefix(INSTANCE) {
                word.text.push_str(INSTANCE);
                self.rest = rest;
                continue;
            }
            match c {
                ' ' | '\t' => break,
                ';' | '|' | '(' | ')' | '{' | '}' | '`' | '\n' | '\r' => return None,
                '&' => return None,
                '<' | '>' => {
                    word.redirects = true;
                    self.redirection()?;
                    continue;
                }
                '\'' => {
                    quoted = true;
                    let end = self.rest[1..].find('\'')?;
                    word.text.push_str(&self.rest[1..=end]);
                    self.rest = &self.rest[end + 2..];
                    continue;
                }
                '"' => {
                    quoted = true;
                    self.double_quoted(&mut word)?;
                    continue;
                }
                '\\' => {
                    quoted = true;
                    let next = self.rest[1..].chars().next()?;
                    if next != '\n' {
                        word.text.push(next);
                    }
                    self.rest = &self.rest[1 + next.len_utf8()..];
                    continue;
                }
                '$' => {
                    word.expands = true;
                    self.expansion()?;
                    continue;
                }
                '*' | '?' | '[' | '~' => word.expands |= c != '~',
                '=' if !quoted && !word.expands && is_name(&word.text) => word.assignment = true,
                _ => {}
            }
            word.text.push(c);
            self.rest = &self.rest[c.len_utf8()..];
        }
        Some(Some(word))
    }

    /// `>`, `>>`, `<`, `>&`, `<&`; not here-documents, `>|` and `<>`, which are rare.
    fn redirection(&mut self) -> Option<()> {
        let sign = &self.rest[..1];
        self.rest = &self.rest[1..];
        if sign == ">" {
            self.rest = self.rest.strip_prefix('>').unwrap_or(self.rest);
        }
        self.rest = self.rest.strip_prefix('&').unwrap_or(self.rest);
        self.rest = self.rest.trim_start_matches([' ', '\t']);
        let named = !self.rest.is_empty() && !self.rest.starts_with(['<', '>', '&', '#']);
        named.then_some(())
    }

    fn double_quoted(&mut self, word: &mut Word) -> Option<()> {
        self.rest = &self.rest[1..];
        loop {
            let c = self.rest.chars().next()?;
            match c {
                '"' => {
                    self.rest = &self.rest[1..];
                    return Some(());
                }
                '`' => return None,
                '$' => {
                    word.expands = true;
                    self.expansion()?;
                    continue;
                }
                '\\' => {
                    let next = self.rest[1..].chars().next()?;
                    word.text.push(next);
                    self.rest = &self.rest[1 + next.len_utf8()..];
                    continue;
                }
                _ => word.text.push(c),
            }
            self.rest = &self.rest[c.len_utf8()..];
        }
    }

    /// `$NAME` and `${NAME}`, also with a plain default; never a command or a sum.
    fn expansion(&mut self) -> Option<()> {
        self.rest = &self.rest[1..];
        if self.rest.starts_with('(') {
            return None;
        }
        if let Some(braced) = self.rest.strip_prefix('{') {
            let end = braced.find('}')?;
            if braced[..end].contains(['$', '`', '"', '\'', '\\', '{', '\n']) {
                return None;
            }
            self.rest = &braced[end + 1..];
        }
        Some(())
    }
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_simple_command_gets_exec_before_its_program() {
        for (written, run) in [
            ("node server.js", "exec node server.js"),
            ("  node x", "  exec node x"),
            ("A=1 B='x y' node x", "A=1 B='x y' exec node x"),
            ("PATH=$HOME/bin:$PATH prog", "PATH=$HOME/bin:$PATH exec prog"),
            ("node x > out.log 2>&1", "exec node x > out.log 2>&1"),
            ("node x >>\"$LOG\"", "exec node x >>\"$LOG\""),
            ("node --port ${PORT:-3000}", "exec node --port ${PORT:-3000}"),
            ("sh -c 'a; b && c | d'", "exec sh -c 'a; b && c | d'"),
            ("prog \"a;b\" c\\;d # and; more", "exec prog \"a;b\" c\\;d # and; more"),
            ("'my prog' x", "exec 'my prog' x"),
            ("prog \\\n  --flag", "exec prog \\\n  --flag"),
            ("./run a=b\n", "exec ./run a=b\n"),
            ("prog ls *.txt a#b ~", "exec prog ls *.txt a#b ~"),
        ] {
            assert_eq!(with_exec(written), run);
        }
    }

    #[test]
    fn anything_else_stays() {
        for command in [
            "a; b",
            "a && b",
            "a || b",
            "a | b",
            "a &",
            "(a)",
            "{ a; }",
            "a\nb",
            "echo `x`",
            "prog $(x)",
            "prog \"$(x)\"",
            "cd /x",
            "exec prog",
            ". ./env",
            "source x",
            "export A=1",
            ": x",
            "set -e",
            "eval x",
            "trap x TERM",
            "ulimit -n 9",
            "umask 022",
            "if true",
            "! prog",
            "for x",
            "while x",
            "[ -f x ]",
            "A=1",
            "",
            "   ",
            "# nothing",
            "> out",
            "> out prog",
            "$PROG x",
            "\"$PROG\" x",
            "prog <<EOF",
            "prog >| x",
            "prog 'open",
            "prog \"open",
            "prog \\",
            "pro[g] x",
            "\"cd\" x",
            "prog `",
            "prog &> x",
            "prog ${A:-$(x)}",
            "prog ${A",
            "time prog",
            "{a,b}",
            "prog # a\nb",
            "prog >",
            "a\r\nb",
            "\"\"",
        ] {
            assert_eq!(with_exec(command), command);
        }
    }

    #[test]
    fn the_program_is_known_without_its_quotes() {
        assert_eq!(simple("A=1 \"/opt/my app\"/run x").unwrap().program, "/opt/my app/run");
    }
}
