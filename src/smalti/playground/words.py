"""Every text of the page, English and Chinese side by side; `{name}` is replaced by a value.

页面上的全部文字，中英对照。
"""

Words = dict[str, tuple[str, str]]

FRAME: Words = {
    "title": ("smalti playground", "smalti 试验场"),
    "tagline": ("Look at the tokens of a picture, and change them.", "查看一张图片的词元，并动手修改。"),
    "other_language": ("中文", "English"),
    "tokenizer": ("Tokenizer", "分词器"),
    "drop": ("Drop a picture here", "把图片拖到这里"),
    "drop_hint": (
        "or choose a file: PNG, JPEG, WebP, AVIF, … It goes to this server only.",
        "或者选择文件：PNG、JPEG、WebP、AVIF 等。图片只会发给本服务器。",
    ),
    "example": ("Try a photograph", "用一张示例照片试试"),
    "another": ("Another picture", "换一张图片"),
    "panels": ("Panels", "面板"),
    "busy": ("Computing …", "计算中……"),
    "full_size": ("{name}: {width} × {height} pixels", "{name}：{width} × {height} 像素"),
    "reduced": (
        "{name}: {width} × {height} pixels, reduced from {fullWidth} × {fullHeight}",
        "{name}：{width} × {height} 像素，由 {fullWidth} × {fullHeight} 缩小而来",
    ),
    "lost": (
        "The server gave no answer. Its terminal may say why.",
        "服务器没有应答，原因可能显示在它的终端里。",
    ),
    "too_large": ("{name}: larger than {limit} MB", "{name}：超过 {limit} MB"),
    "several": ("Only the first of the {count} files was opened.", "共 {count} 个文件，只打开了第一个。"),
    "layer": ("Tokens of", "词元图"),
    "layer_map": ("the picture ({rows} × {columns})", "整张图（{rows} × {columns}）"),
    "layer_scale": ("scale {number} ({rows} × {columns})", "尺度 {number}（{rows} × {columns}）"),
    "layer_level": ("level {number} ({rows} × {columns})", "第 {number} 层（{rows} × {columns}）"),
    "layer_part": ("part {number} ({rows} × {columns})", "第 {number} 部分（{rows} × {columns}）"),
    "placeless": (
        "These tokens have no place: each describes the whole picture. They are shown as a grid in their order.",
        "这些词元没有位置：每个词元描述整张图片。网格只表示它们的顺序。",
    ),
    "grid": ("Grid of tokens", "词元网格"),
    "loupe": ("Loupe", "放大镜"),
    "loupe_off": ("off", "关闭"),
    "stage": (
        "The picture. Arrow keys move the pointed token, Enter uses it.",
        "图片。方向键移动所指的词元，回车键使用它。",
    ),
    "divider": ("Divider between the two pictures", "两张图片之间的分隔线"),
    "original": ("Original", "原图"),
    "reconstruction": ("Reconstruction", "重建"),
    "original_alt": ("Original picture {name}", "原图 {name}"),
    "reconstruction_alt": ("Reconstruction of {name} by {model}", "{model} 对 {name} 的重建"),
    "pointed": ("Row {row}, column {column}: code {code}", "第 {row} 行第 {column} 列：码字 {code}"),
    "code": ("Code {code}", "码字 {code}"),
    "no_number": ("–", "–"),
    "exact": ("exact", "完全一致"),
}

LOOK: Words = {
    "tab_look": ("Look", "观看"),
    "look_hint": (
        "Left of the line is the original, right of it what {count} tokens hold. Drag the line.",
        "线的左边是原图，右边是 {count} 个词元所保留的内容。可拖动这条线。",
    ),
    "look_error": ("Heat map of the error", "误差热力图"),
    "look_error_scale": ("error: 0 to {top} grey levels and more", "误差：0 至 {top} 个灰度级及以上"),
    "psnr": ("PSNR", "PSNR"),
    "ssim": ("SSIM", "SSIM"),
    "tokens": ("Tokens", "词元数"),
    "bytes": ("Bytes, packed", "打包字节数"),
    "bits": ("Bits per pixel", "每像素比特数"),
    "codes_used": ("Different codes", "不同码字数"),
}

POINT: Words = {
    "tab_point": ("Point", "指点"),
    "point_hint": (
        "Point at the picture: the token at every scale lights up, and every other place with the same code.",
        "指向图片：各尺度上的词元会亮起，使用同一码字的其他位置也会亮起。",
    ),
    "point_table": ("Tokens at this place", "此处的词元"),
    "point_where": ("Layer", "层"),
    "point_code": ("Code", "码字"),
    "point_here": ("Here", "本图"),
    "point_trained": ("In training", "训练中"),
    "point_times": ("{count} ×", "{count} 次"),
    "point_share": ("1 of {count}", "每 {count} 个词元 1 次"),
    "point_never": ("never", "从未使用"),
    "point_unknown": ("not counted", "未统计"),
}

SCALES: Words = {
    "tab_scales": ("Scales", "尺度"),
    "scales_slider": ("Scales so far", "已用尺度"),
    "scales_hint": (
        "The picture after {step} of {steps} steps; left of the line the original.",
        "前 {step} 步（共 {steps} 步）之后的图片；线的左边是原图。",
    ),
    "scales_single": (
        "This tokenizer has one map of tokens, and so one step.",
        "这个分词器只有一张词元图，因此只有一步。",
    ),
    "scales_tokens": ("Tokens so far", "已用词元数"),
    "scales_equal": ("Image codecs at the same number of bytes", "同样字节数的图像编码器"),
    "scales_codec_alt": ("The original in {title} with {bytes} bytes", "{title} 编码的原图，{bytes} 字节"),
    "scales_codec": ("{title}: {bytes} bytes, {psnr} dB", "{title}：{bytes} 字节，{psnr} dB"),
    "scales_larger": (
        "{title}: its smallest file, {bytes} bytes, {psnr} dB",
        "{title}：最小的文件，{bytes} 字节，{psnr} dB",
    ),
}

PAINT: Words = {
    "tab_paint": ("Paint", "涂改"),
    "paint_hint": (
        "Drag on the picture: the brush writes one code into the tokens of the layer.",
        "在图片上拖动：画笔把一个码字写入该层的词元。",
    ),
    "paint_tool": ("Tool", "工具"),
    "paint_brush": ("Brush", "画笔"),
    "paint_eraser": ("Eraser", "橡皮"),
    "paint_pick": ("Pick a code", "取码字"),
    "paint_copy": ("Copy a region", "复制区域"),
    "paint_paste": ("Paste", "粘贴"),
    "paint_code": ("Code of the brush", "画笔的码字"),
    "paint_size": ("Size", "大小"),
    "paint_undo": ("Undo", "撤销"),
    "paint_redo": ("Redo", "重做"),
    "paint_reset": ("Encoder's tokens", "恢复编码器的词元"),
    "paint_influence": ("Show what changed", "显示变化"),
    "paint_changed": (
        "{edited} tokens differ from the encoder's. The last step changed {changed} of {pixels} pixels.",
        "{edited} 个词元与编码器的不同。上一步改变了 {pixels} 个像素中的 {changed} 个。",
    ),
    "paint_copied": (
        "{count} tokens copied. Paste them here or into another picture.",
        "已复制 {count} 个词元。可粘贴到此处或另一张图片。",
    ),
    "paint_tokens": ("Download tokens", "下载词元"),
    "paint_picture": ("Download picture", "下载图片"),
    "paint_keys": (
        "Keys: arrows move, Enter paints, Z undoes, Y repeats, B E P C V choose the tool.",
        "按键：方向键移动，回车涂改，Z 撤销，Y 重做，B E P C V 选择工具。",
    ),
}

CODES: Words = {
    "tab_codes": ("Codes", "码本"),
    "codes_hint": (
        "Each code decoded alone, most used first. Click one to find it in the picture.",
        "每个码字单独解码，常用的在前。点击码字可在图片中找到它。",
    ),
    "codes_loading": ("{count} of {total} codes", "{total} 个码字中的 {count} 个"),
    "codes_dead": ("{count} never used in training", "{count} 个在训练中从未使用"),
    "codes_uncounted": ("The model kept no count of its training.", "模型没有保存训练中的使用次数。"),
    "codes_more": ("Show more", "显示更多"),
    "codes_wall": ("Codebook", "码本"),
    "codes_label": ("Code {code}, {count} times in this picture", "码字 {code}，在本图中出现 {count} 次"),
    "codes_label_dead": (
        "Code {code}, never used in training, {count} times in this picture",
        "码字 {code}，训练中从未使用，在本图中出现 {count} 次",
    ),
    "codes_found": ("Code {code}: {count} × in this picture", "码字 {code}：在本图中出现 {count} 次"),
    "codes_brush": ("Paint with it", "用它涂改"),
}

DUEL: Words = {
    "tab_duel": ("Duel", "对决"),
    "duel_hint": (
        "Two tokenizers on the same picture. Drag the line between them.",
        "两个分词器处理同一张图片。可拖动两者之间的线。",
    ),
    "duel_left": ("Left", "左"),
    "duel_right": ("Right", "右"),
    "duel_caption": ("{name}", "{name}"),
    "duel_single": (
        "One tokenizer is open. To compare two, name both: smalti play photo-f8 photo-pyramid",
        "只打开了一个分词器。要比较两个，请同时写出名称：smalti play photo-f8 photo-pyramid",
    ),
    "duel_error": ("Heat maps of the error", "误差热力图"),
    "duel_alt": ("Reconstruction by {name}", "{name} 的重建"),
    "duel_error_alt": ("Heat map of the error of {name}", "{name} 的误差热力图"),
    "duel_numbers": ("Numbers; ★ marks the better value", "数值；★ 表示较好的一方"),
    "duel_bytes": ("Bytes of the token file", "词元文件字节数"),
    "duel_time": ("Encode and decode", "编码与解码"),
    "duel_note": (
        "The time is that of a single run on this server.",
        "时间是在本服务器上运行一次的结果。",
    ),
}

DREAM: Words = {
    "tab_dream": ("Dream", "梦境"),
    "dream_none": (
        "A prior is needed, a model of the tokens of {model}: smalti play --prior FOLDER, with a FOLDER that "
        "smalti train-prior made.",
        "这里需要一个先验模型，即 {model} 的词元的模型：smalti play --prior 文件夹，文件夹由 smalti train-prior 生成。",
    ),
    "dream_other_size": (
        "The prior knows pictures of {width} × {height} pixels only.",
        "先验模型只适用于 {width} × {height} 像素的图片。",
    ),
    "dream_cut": ("Cut the picture to this size", "把图片裁剪成这个大小"),
    "dream_hint": (
        "Bright tokens surprise the prior, dark ones it expected.",
        "亮的词元出乎先验模型的意料，暗的在意料之中。",
    ),
    "dream_scales": (
        "It predicts each scale from the coarser scales.",
        "它由较粗的尺度预测每个尺度。",
    ),
    "dream_tokens": (
        "It predicts each token from those before it.",
        "它由前面的词元预测每个词元。",
    ),
    "dream_half": (
        "It predicts each half of the tokens from the other half, so the bits do not add up to a likelihood.",
        "它由一半词元预测另一半，因此比特数之和不是似然。",
    ),
    "dream_class": ("Class", "类别"),
    "dream_no_class": ("no class", "无类别"),
    "dream_map": ("Map of the bits", "比特图"),
    "dream_scale": ("0 to {top} bits of surprise and more", "意外程度：0 至 {top} 比特及以上"),
    "dream_total": ("Bits of the picture", "整张图的比特数"),
    "dream_mean": ("Bits per token", "每词元比特数"),
    "dream_packed": ("Bits without the prior", "没有先验时的比特数"),
    "dream_point": (
        "Row {row}, column {column}: code {code}, {bits} bits",
        "第 {row} 行第 {column} 列：码字 {code}，{bits} 比特",
    ),
    "dream_temperature": ("Temperature {value}", "温度 {value}"),
    "dream_temperature_name": ("Temperature", "温度"),
    "dream_threshold_name": ("Bits below which a token is predictable", "低于这个比特数的词元算作可预测"),
    "dream_region": ("Draw a painted region again", "重新生成涂选的区域"),
    "dream_region_hint": (
        "Drag on the picture to paint a region; drag from a painted place to erase.",
        "在图片上拖动以涂选区域；从已涂的地方开始拖动则为擦除。",
    ),
    "dream_clear": ("Clear", "清除"),
    "dream_draw": ("Draw the region again", "重新生成该区域"),
    "dream_predictable": ("Draw again what was predictable", "重新生成可预测的部分"),
    "dream_threshold": (
        "{count} of {all} tokens below {bits} bits",
        "{all} 个词元中有 {count} 个低于 {bits} 比特",
    ),
    "dream_redraw": ("Draw these tokens again", "重新生成这些词元"),
    "dream_placeless": (
        "These tokens have no place, so no region can be painted.",
        "这些词元没有位置，因此无法涂选区域。",
    ),
    "dream_report": (
        "{count} tokens were drawn again. Before {before} bits, now {after} bits.",
        "重新生成了 {count} 个词元。之前 {before} 比特，现在 {after} 比特。",
    ),
    "dream_keys": (
        "Keys: arrows move, Enter paints or erases, D draws the region again, Z undoes.",
        "按键：方向键移动，回车涂选或擦除，D 重新生成该区域，Z 撤销。",
    ),
}

SHARE: Words = {
    "tab_share": ("Share", "分享"),
    "share_hint": (
        "The link holds the tokens themselves. A browser sends the part after # to no server. The tokenizer {model} "
        "turns them into the same picture.",
        "链接里就是词元本身。浏览器不会把 # 之后的部分发给任何服务器。分词器 {model} 把它们还原为同一张图片。",
    ),
    "share_link": ("Link", "链接"),
    "share_copy": ("Copy the link", "复制链接"),
    "share_copied": ("The link was copied.", "链接已复制。"),
    "share_long": (
        "The link would have {letters} characters, more than {most}. Share the file instead.",
        "链接会有 {letters} 个字符，超过 {most} 个。请改为分享文件。",
    ),
    "share_bytes": ("Bytes of the token file", "词元文件字节数"),
    "share_letters": ("Characters of the link", "链接字符数"),
    "share_fingerprint": ("Tokenizer's fingerprint", "分词器的指纹"),
    "share_open": ("Open what was shared", "打开分享的内容"),
    "share_paste": ("Link", "链接"),
    "share_go": ("Open the link", "打开链接"),
    "share_choose": ("Token file", "词元文件"),
}

REFUSED: Words = {
    "refused_action": ("action: got {got}, expected one of {names}", "操作：得到 {got}，应为以下之一：{names}"),
    "refused_model": ("model: got {got}, expected one of {names}", "分词器：得到 {got}，应为以下之一：{names}"),
    "refused_codec": ("codec: got {got}, expected one of {names}", "图像编码器：得到 {got}，应为以下之一：{names}"),
    "refused_layer": ("layer: got {got}, expected 0 to {last}", "词元图：得到 {got}，应为 0 至 {last}"),
    "refused_cell": ("cell: got {got}, expected 0 to {last}", "格子：得到 {got}，应为 0 至 {last}"),
    "refused_code": ("code: got {got}, expected 0 to {last}", "码字：得到 {got}，应为 0 至 {last}"),
    "refused_step": ("step: got {got}, expected 0 to {last}", "步：得到 {got}，应为 0 至 {last}"),
    "refused_no_picture": (
        "picture: got none, expected one; drop a picture on the page first",
        "还没有图片，请先把图片拖到页面上。",
    ),
    "refused_upload": (
        "{name}: damaged on its way to the server ({reason})",
        "{name}：在发往服务器的途中损坏（{reason}）",
    ),
    "refused_large": (
        "{name}: got {bytes} bytes, expected at most {most}",
        "{name}：有 {bytes} 字节，最多为 {most} 字节",
    ),
    "refused_codec_original": (
        "codec: got tokens without the original picture, which codecs need",
        "图像编码器需要原图，而这里只有词元。",
    ),
    "refused_region": (
        "region: got one without the centre of any token, expected a larger region",
        "所选区域不含任何词元的中心，请选择更大的区域。",
    ),
    "refused_paste": (
        "copied: got no tokens, expected a copied region",
        "还没有复制词元，请先复制一个区域。",
    ),
    "refused_paste_model": (
        "copied: got tokens of {got}, expected those of {expected}",
        "复制的是 {got} 的词元，应为 {expected} 的词元。",
    ),
    "refused_prior": (
        "prior: got none for {model}, expected one; start with smalti play --prior",
        "{model} 没有先验模型，请用 smalti play --prior 启动。",
    ),
    "refused_placeless": (
        "region: got one for tokens that belong to no place, expected a threshold",
        "这些词元没有位置，不能按区域选择，请用比特数的界限选择。",
    ),
    "refused_nothing": (
        "region: got no token, expected at least one; paint a larger region or raise the threshold",
        "没有选中任何词元，请涂选更大的区域，或提高比特数的界限。",
    ),
    "refused_link": (
        "link: got no tokens in it, expected {mark} and the tokens",
        "链接里没有词元，应有 {mark} 以及其后的词元。",
    ),
    "refused_altered": (
        "link: got other characters after {mark} than base64url's, expected an unaltered link",
        "链接中 {mark} 之后有 base64url 以外的字符，请使用未经改动的链接。",
    ),
    "refused_fingerprint": (
        "shared picture: got the fingerprint {got}, another tokenizer's, expected {expected}",
        "分享的图片来自另一个分词器，其指纹为 {got}，应为 {expected}",
    ),
    "refused_pictures": (
        "shared picture: got {count} pictures, expected one",
        "分享的文件有 {count} 张图片，应为一张。",
    ),
    "refused_pixels": (
        "shared picture: got {width} x {height} pixels, expected at most {most}",
        "分享的图片有 {width} × {height} 像素，最多为 {most} 像素。",
    ),
    "refused_channels": (
        "shared picture: got {got} channels, expected {expected}",
        "分享的图片有 {got} 个通道，应为 {expected} 个。",
    ),
}
"""Reasons that the playground itself gives, see `RefusalError`."""

FAILED: Words = {
    "failed_look": ("The file could not be opened or encoded: {reason}", "无法打开或编码文件：{reason}"),
    "failed_scales": ("The scales could not be shown: {reason}", "无法显示各尺度：{reason}"),
    "failed_paint": ("The tokens could not be changed or saved: {reason}", "无法修改或保存词元：{reason}"),
    "failed_codes": ("The codes could not be shown: {reason}", "无法显示码字：{reason}"),
    "failed_duel": ("The tokenizers could not be compared: {reason}", "无法比较分词器：{reason}"),
    "failed_dream": ("The prior could not be used: {reason}", "无法使用先验模型：{reason}"),
    "failed_share": ("The link could not be made or opened: {reason}", "无法生成或打开链接：{reason}"),
}
"""What failed, by panel; the reason comes from models or files and is in English, as on the command line."""

PANELS: tuple[Words, ...] = (FRAME, LOOK, POINT, SCALES, PAINT, CODES, DUEL, DREAM, SHARE, REFUSED, FAILED)


class RefusalError(ValueError):
    """A mistake that the playground itself finds: the message is in English, the page shows it in its language.

    Args:
        key: key of the text in `REFUSED`.
        values: values for the text, plain JSON.
    """

    def __init__(self, key: str, **values: str | int):
        super().__init__(REFUSED[key][0].format(**values))
        self.key, self.values = key, values


def words() -> dict[str, dict[str, str]]:
    """Language -> key -> text."""
    table = {key: texts for panel in PANELS for key, texts in panel.items()}
    return {"en": {key: en for key, (en, _) in table.items()}, "zh": {key: zh for key, (_, zh) in table.items()}}
