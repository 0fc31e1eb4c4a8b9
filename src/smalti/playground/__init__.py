"""The playground, `smalti play`: a web page on which a person looks at tokens and changes them.

Which file is what:

    config.py      settings of the command
    serve.py       opens the models and runs the server
    app.py         the web application: one Gradio page, the guard in front of it
    guard.py       refuses requests that another web site makes
    actions.py     name of an action -> function; the only door from the browser to Python
    workspace.py   what one browser tab works on: tokenizer, picture, tokens, steps to undo
    opened.py      an opened tokenizer: its token maps, code usage, the picture of each code
    layers.py      which tokens form which map: scales, residual levels, groups
    pictures.py    pixels to PNG, colour maps
    look.py, scales.py, paint.py, codes.py, duel.py, dream.py, share.py
                   one panel each: from a workspace to plain JSON data
    words.py       every text of the page, English and Chinese
    page/          HTML, CSS and JavaScript: frame.* is common, stage.js the picture, then one file per panel

A panel is a Python file of functions `(workspace, arguments) -> dict`, rows in `actions.ACTIONS`, a name in
`app.PANELS`, `page/NAME.html`, `page/NAME.js` and its texts in `words.py`. No algorithm is here: encoding, decoding,
metrics and codecs come from the rooms below.

本目录是网页演示：浏览器里的每个操作对应 `actions.py` 中的一个函数；一个面板由一个 Python 文件、一个 HTML 文件和一个
JavaScript 文件组成。
"""
