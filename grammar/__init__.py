"""The language of convein as Lark grammars: `conv_einsum.lark` is the core, the other files are dialects of it."""
