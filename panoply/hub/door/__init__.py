"""The door by which every model folder comes in; nothing else reads one.

No code of a model runs unless it is asked for, no pickle is read, no file outside of the folder is
named, shapes are compared before memory is asked for, and whatever is wrong with a file is one
sentence with the path, the reason and what to do: a ValueError or an OSError.

    fetch        a name -> a folder
    checkpoint   a folder's JSON and tensors
    templates    the one chat template of a tokenizer
    loading      configurations, tokenizers, models and adapters by transformers and peft
"""
