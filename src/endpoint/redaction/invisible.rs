//! Characters that a reader of a text cannot see.

/// Returns whether a character is a control character, is invisible, or makes a terminal change the
/// order or the line of a text.
///
/// Of Unicode 16.0, these are: `Default_Ignorable_Code_Point`, the general categories Cc, Cf, Zl and
/// Zp without the visible `Prepended_Concatenation_Mark`, and noncharacters.
pub(in crate::endpoint) fn is_unsafe_to_print(character: char) -> bool {
    character.is_control() || is_noncharacter(character) || is_ignorable_or_format(character)
}

fn is_noncharacter(character: char) -> bool {
    let code = u32::from(character);
    code & 0xfffe == 0xfffe || (0xfdd0..=0xfdef).contains(&code)
}

fn is_ignorable_or_format(character: char) -> bool {
    matches!(
        character,
        '\u{ad}'
            | '\u{34f}'
            | '\u{61c}'
            | '\u{115f}'..='\u{1160}'
            | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}'
            | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{3164}'
            | '\u{fe00}'..='\u{fe0f}'
            | '\u{feff}'
            | '\u{ffa0}'
            | '\u{fff0}'..='\u{fffb}'
            | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}'
            | '\u{e0000}'..='\u{e0fff}'
    )
}

#[cfg(test)]
mod tests {
    use regex_syntax::hir::{Class, HirKind};

    use super::*;

    #[test]
    fn table_agrees_with_the_unicode_character_database() {
        let class = regex_syntax::parse(concat!(
            r"[[\p{Default_Ignorable_Code_Point}\p{Cc}\p{Cf}\p{Zl}\p{Zp}",
            r"\p{Noncharacter_Code_Point}]--\p{Prepended_Concatenation_Mark}]",
        ))
        .unwrap();
        let HirKind::Class(Class::Unicode(class)) = class.kind() else {
            panic!("a class of characters");
        };

        let differing: Vec<_> = ('\0'..=char::MAX)
            .filter(|&character| {
                let ranges = class.ranges();
                let is_in_class = ranges
                    .iter()
                    .any(|range| range.start() <= character && character <= range.end());
                is_in_class != is_unsafe_to_print(character)
            })
            .collect();

        assert_eq!(differing, []);
    }
}
