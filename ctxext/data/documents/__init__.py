"""Files of text to documents: the one reader of training, evaluations and `ctxext prepare`.

`find_files` says which files a path means, `read_file` reads the documents of one of them, and
`read_texts` those of all, where nothing may be broken. What cannot be read is named with its file,
and with its line, row or entry.
"""

from ctxext.data.documents.conversations import messages_of as messages_of
from ctxext.data.documents.field import Field as Field
from ctxext.data.documents.files import Found as Found
from ctxext.data.documents.files import accompanies_data as accompanies_data
from ctxext.data.documents.files import find_files as find_files
from ctxext.data.documents.files import patterns as patterns
from ctxext.data.documents.files import summary as summary
from ctxext.data.documents.kinds import COMPRESSIONS as COMPRESSIONS
from ctxext.data.documents.kinds import SUFFIXES as SUFFIXES
from ctxext.data.documents.kinds import kind_of as kind_of
from ctxext.data.documents.read import Document as Document
from ctxext.data.documents.read import check_beginnings as check_beginnings
from ctxext.data.documents.read import check_texts as check_texts
from ctxext.data.documents.read import cite as cite
from ctxext.data.documents.read import location as location
from ctxext.data.documents.read import place_of as place_of
from ctxext.data.documents.read import plain_text as plain_text
from ctxext.data.documents.read import read_documents as read_documents
from ctxext.data.documents.read import read_file as read_file
from ctxext.data.documents.read import read_texts as read_texts
